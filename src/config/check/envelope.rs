//! The rules of `upstreams[].envelope`.

use std::collections::HashMap;

use super::Check;
use crate::config::file;
use crate::config::mistake::{KeyPath, quoted};
use crate::config::settings::Envelope;

/// Longest code that is compared; longer ones in answers are cut off.
const LONGEST_CODE: usize = 64;

impl Check<'_, '_> {
    /// How envelopes are read, for the dialect that has them.
    pub(super) fn envelope(
        &mut self,
        upstream: &file::Upstream,
        path: KeyPath<'_>,
    ) -> Option<Envelope> {
        let written = &upstream.envelope;
        if upstream.dialect != file::Dialect::Enveloped {
            if *written != file::Envelope::default() {
                let found = "given for another dialect";
                let allowed = "only dialect enveloped has envelopes";
                self.report.mistake(path, found, allowed);
            }
            return None;
        }
        let mut seen = HashMap::new();
        let codes = path.key("success");
        for (index, code) in written.success.iter().enumerate() {
            let text = code.to_text();
            self.code(&text, codes.index(index));
            self.unique(&mut seen, text.clone(), &quoted(&text), codes.index(index));
        }
        let statuses = path.key("statuses");
        for code in written.statuses.keys() {
            self.code(code, statuses.key(code));
            if seen.contains_key(code) {
                let found = format!("{} is a code of success", quoted(code));
                let allowed = "it can be one or the other";
                self.report.mistake(statuses.key(code), found, allowed);
            }
        }
        Some(Envelope {
            success: written.success.iter().map(file::Code::to_text).collect(),
            statuses: written.statuses.clone(),
        })
    }

    fn code(&mut self, code: &str, path: KeyPath<'_>) {
        if code.is_empty() || code.len() > LONGEST_CODE {
            let allowed = "a code has 1 to 64 bytes";
            self.report.mistake(path, quoted(code), allowed);
        }
    }
}
