//! The rules of `server`: addresses that can be bound, limits that fit together.

use std::net::SocketAddr;
use std::time::Duration;

use super::{ABOVE_ZERO, Check};
use crate::config::file::{self, File};
use crate::config::mistake::{KeyPath, quoted};
use crate::config::settings::{Admin, Limits, Listener, Server, TlsVersion};
use crate::config::text::{DurationText, SizeText};

/// A body is held in memory whole.
const MOST_REQUEST_BODY: u64 = 1 << 30;
/// An upload is not, yet somewhere ends what can be meant.
const MOST_FILE_UPLOAD: u64 = 1 << 40;
/// Pingora's own HTTP/1 reader stops just below 1 MiB, and at 256 fields.
const MOST_HEAD: u64 = 1023 * 1024;

/// Looking more often than this is work of its own.
const LEAST_WATCH: Duration = Duration::from_millis(100);

impl Check<'_, '_> {
    pub(super) fn server(&mut self, file: &File) -> Server {
        let path = KeyPath::Root.key("server");
        let written = &file.server;
        let listeners = self.listeners(file, path);
        let admin = written
            .admin
            .as_ref()
            .and_then(|admin| self.admin(admin, &listeners, path));
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        Server {
            threads: written.threads.unwrap_or_else(available),
            state_dir: self.path(&written.state_dir, path.key("state_dir")),
            listeners,
            admin,
            shutdown_grace: self.duration(
                written.shutdown_grace,
                Duration::ZERO,
                path.key("shutdown_grace"),
            ),
            shutdown_pause: self.duration(
                written.shutdown_pause,
                Duration::ZERO,
                path.key("shutdown_pause"),
            ),
            upstream_idle_connections: written.upstream_idle_connections,
            watch_configuration: match written.watch_configuration {
                DurationText(Duration::ZERO) => Duration::ZERO,
                often => self.duration(often, LEAST_WATCH, path.key("watch_configuration")),
            },
            watch_files: self.duration(
                written.watch_files,
                Duration::ZERO,
                path.key("watch_files"),
            ),
            store: self.store(&written.store, path.key("store")),
            limits: self.limits(&written.limits, path.key("limits")),
        }
    }

    fn admin(
        &mut self,
        written: &file::Admin,
        listeners: &[Listener],
        path: KeyPath<'_>,
    ) -> Option<Admin> {
        let path = path.key("admin");
        let token = written
            .token
            .as_ref()
            .and_then(|token| self.secret(token, path.key("token")));
        let address = self.address(&written.address, path.key("address"))?;
        if address.port() != 0 && listeners.iter().any(|listener| listener.address == address) {
            let allowed = "tenants and operators need addresses of their own";
            self.report.mistake(
                path.key("address"),
                format!("{address} is a listener's address"),
                allowed,
            );
        }
        if !address.ip().is_loopback() {
            let found = format!("the admin address {address} can be reached from other machines");
            self.report.warning(
                path.key("address"),
                found,
                "it speaks plain HTTP; bind it to 127.0.0.1 or to a network of your own",
            );
        }
        Some(Admin { address, token })
    }

    pub(super) fn address(&mut self, text: &str, path: KeyPath<'_>) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            let allowed = "expected an IP address and a port, such as 127.0.0.1:8080 or [::]:8443";
            self.report.mistake(path, quoted(text), allowed);
        }
        address
    }

    fn limits(&mut self, written: &file::Limits, path: KeyPath<'_>) -> Limits {
        let max_request_body = self.bytes(
            written.max_request_body,
            MOST_REQUEST_BODY,
            path.key("max_request_body"),
        );
        let max_buffered_bodies = self.bytes(
            written.max_buffered_bodies,
            MOST_FILE_UPLOAD,
            path.key("max_buffered_bodies"),
        );
        if max_buffered_bodies < max_request_body {
            let allowed =
                "expected at least max_request_body, or no large request could ever be taken";
            self.report.mistake(
                path.key("max_buffered_bodies"),
                "less than max_request_body",
                allowed,
            );
        }
        let max_head = self.bytes(written.max_head, MOST_HEAD, path.key("max_head"));
        let max_target = self.bytes(written.max_target, MOST_HEAD, path.key("max_target"));
        if max_target > max_head {
            self.report.mistake(
                path.key("max_target"),
                "more than max_head",
                "the target is part of the head",
            );
        }
        let mut timeout = |value, key| self.duration(value, ABOVE_ZERO, path.key(key));
        Limits {
            head_timeout: timeout(written.head_timeout, "head_timeout"),
            body_timeout: timeout(written.body_timeout, "body_timeout"),
            idle_timeout: timeout(written.idle_timeout, "idle_timeout"),
            write_timeout: timeout(written.write_timeout, "write_timeout"),
            tls_handshake_timeout: timeout(written.tls_handshake_timeout, "tls_handshake_timeout"),
            max_request_body,
            max_file_upload: self.size(
                written.max_file_upload,
                MOST_FILE_UPLOAD,
                path.key("max_file_upload"),
            ),
            max_buffered_bodies,
            max_head,
            max_head_fields: written.max_head_fields,
            max_target,
            requests_per_connection: written.requests_per_connection,
            max_connections: written.max_connections,
            max_connections_per_ip: written.max_connections_per_ip,
            max_requests: written.max_requests,
            max_requests_per_ip: written.max_requests_per_ip,
            max_requests_per_second_per_ip: written.max_requests_per_second_per_ip,
        }
    }

    fn bytes(&mut self, value: SizeText, most: u64, path: KeyPath<'_>) -> usize {
        usize::try_from(self.size(value, most, path)).unwrap_or(usize::MAX)
    }
}

pub(super) fn tls_version(written: file::TlsVersion) -> TlsVersion {
    match written {
        file::TlsVersion::V1_2 => TlsVersion::V1_2,
        file::TlsVersion::V1_3 => TlsVersion::V1_3,
    }
}
