//! The rules of clocks: those of an attempt (`upstreams[].timeouts`), and those that models and
//! tenants set over them (`deadlines`).

use std::time::Duration;

use super::{ABOVE_ZERO, Check};
use crate::config::file;
use crate::config::mistake::KeyPath;
use crate::config::settings::{Deadlines, UpstreamTimeouts};
use crate::config::text::{DurationText, format_duration};

impl Check<'_, '_> {
    pub(super) fn timeouts(
        &mut self,
        written: &file::Timeouts,
        path: KeyPath<'_>,
    ) -> UpstreamTimeouts {
        if written.connect_total < written.connect {
            self.report.mistake(
                path.key("connect_total"),
                "less than connect",
                "it covers the connect as well",
            );
        }
        let mut timeout = |value, key| self.duration(value, ABOVE_ZERO, path.key(key));
        let connect = timeout(written.connect, "connect");
        let connect_total = timeout(written.connect_total, "connect_total");
        let read = timeout(written.read, "read");
        let write = timeout(written.write, "write");
        let total = timeout(written.total, "total");
        // A default gives way to a shorter total, which would otherwise have to be written five times.
        let mut part = |value: Option<DurationText>, usual: DurationText, key| match value {
            None => usual.0.min(total),
            Some(value) => {
                self.within_total(value.0, total, path.key(key));
                self.duration(value, ABOVE_ZERO, path.key(key))
            }
        };
        UpstreamTimeouts {
            connect,
            connect_total,
            read,
            write,
            first_byte: part(written.first_byte, file::FIRST_BYTE, "first_byte"),
            queued: part(written.queued, file::QUEUED, "queued"),
            first_content: part(written.first_content, file::FIRST_CONTENT, "first_content"),
            gap: part(written.gap, file::GAP, "gap"),
            total,
        }
    }

    /// The clocks of a model or a tenant: what is `written` there, over what it `inherits`. The rules
    /// of the latter were told where it stands.
    pub(super) fn deadlines(
        &mut self,
        written: &file::Deadlines,
        inherited: &file::Deadlines,
        path: KeyPath<'_>,
    ) -> Deadlines {
        let all = written.or(*inherited);
        let total = all.total.map(|total| total.0);
        let mut part = |own: Option<DurationText>, effective: Option<DurationText>, key| {
            if let Some(own) = own {
                self.duration(own, ABOVE_ZERO, path.key(key));
            }
            if let (Some(value), Some(total)) = (effective, total)
                && (own.is_some() || written.total.is_some())
            {
                self.within_total(value.0, total, path.key(key));
            }
            effective.map(|value| value.0)
        };
        let first_byte = part(written.first_byte, all.first_byte, "first_byte");
        let queued = part(written.queued, all.queued, "queued");
        let first_content = part(written.first_content, all.first_content, "first_content");
        let gap = part(written.gap, all.gap, "gap");
        if let Some(total) = written.total {
            self.duration(total, ABOVE_ZERO, path.key("total"));
        }
        Deadlines {
            first_byte,
            queued,
            first_content,
            gap,
            total,
        }
    }

    fn within_total(&mut self, value: Duration, total: Duration, path: KeyPath<'_>) {
        if value > total {
            let found = format!("{}, more than total", format_duration(value));
            let allowed = format!(
                "expected at most {}: it would never come to pass",
                format_duration(total)
            );
            self.report.mistake(path, found, allowed);
        }
    }
}
