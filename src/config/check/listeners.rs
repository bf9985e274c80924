//! The rules of `server.listeners`: sockets, TLS, and who is believed about whom.

use std::collections::HashMap;

use super::Check;
use super::server::tls_version;
use crate::config::file::{self, File};
use crate::config::mistake::KeyPath;
use crate::config::settings::{
    CipherPolicy, ClientCertificates, Forwarding, Listener, ListenerTls, TenantId, TlsFiles,
    TlsVersion,
};

impl Check<'_, '_> {
    pub(super) fn listeners(&mut self, file: &File, path: KeyPath<'_>) -> Vec<Listener> {
        let path = path.key("listeners");
        let mut seen = HashMap::new();
        let mut listeners = Vec::new();
        for (index, written) in file.server.listeners.iter().enumerate() {
            let path = path.index(index);
            let address = self.address(&written.address, path.key("address"));
            if let Some(address) = address.filter(|address| address.port() != 0) {
                self.unique(
                    &mut seen,
                    address,
                    &address.to_string(),
                    path.key("address"),
                );
            }
            if let Some(listener) = self.listener(written, address, file, path) {
                listeners.push(listener);
            }
        }
        listeners
    }

    fn listener(
        &mut self,
        written: &file::Listener,
        address: Option<std::net::SocketAddr>,
        file: &File,
        path: KeyPath<'_>,
    ) -> Option<Listener> {
        if written.h2c && written.tls.is_some() {
            let allowed = "HTTP/2 is offered over TLS anyway; leave h2c out";
            self.report
                .mistake(path.key("h2c"), "h2c together with tls", allowed);
        }
        let tls = written.tls.as_ref();
        let tls = tls.map(|tls| self.listener_tls(tls, path.key("tls")));
        let accept = self.accepted(written.accept.as_ref(), path.key("accept"));
        let asks_clients = tls.as_ref().is_some_and(|tls| tls.clients.is_some());
        if written.accept.is_some() && accept.client_certificate && !asks_clients {
            let allowed = "give the listener `tls.client_ca`, or leave the kind out";
            let found = "client_certificate on a listener that asks for none";
            self.report.mistake(path.key("accept"), found, allowed);
        }
        if let Some(tenant) = &written.anonymous_tenant {
            let path = path.key("anonymous_tenant");
            self.known_tenant(tenant, file, path);
            let advice = format!("whoever reaches this listener is tenant {tenant}");
            self.report
                .warning(path, "requests without a credential are served", advice);
        }
        let address = address?;
        if tls.is_none() && !address.ip().is_loopback() {
            let found = format!("plain HTTP on {address}, which other machines can reach");
            self.report.warning(path.key("address"), found, "keys and prompts travel in the clear; add `tls`, or make sure that something in front does it");
        }
        Some(Listener {
            address,
            h2c: written.h2c,
            tls,
            accept,
            anonymous_tenant: written.anonymous_tenant.as_deref().map(TenantId::new),
            trusted_proxies: written.trusted_proxies.iter().map(|text| text.0).collect(),
            forwarded_by: match written.forwarded_by {
                file::Forwarding::XForwardedFor => Forwarding::XForwardedFor,
                file::Forwarding::Forwarded => Forwarding::Forwarded,
            },
            proxy_protocol_from: written
                .proxy_protocol_from
                .iter()
                .map(|text| text.0)
                .collect(),
        })
    }

    fn listener_tls(&mut self, written: &file::ListenerTls, path: KeyPath<'_>) -> ListenerTls {
        let mut certificates =
            vec![self.tls_files(&written.certificate, &written.private_key, path)];
        for (index, files) in written.more_certificates.iter().enumerate() {
            let list = path.key("more_certificates");
            let path = list.index(index);
            certificates.push(self.tls_files(&files.certificate, &files.private_key, path));
        }
        if written.client_ca.is_none() && written.client_certificates.is_some() {
            let allowed = "without authorities nobody is asked for one; add client_ca";
            self.report.mistake(
                path.key("client_certificates"),
                "client_certificates without client_ca",
                allowed,
            );
        }
        if written.client_ca.is_none() && written.client_crl.is_some() {
            let allowed = "without authorities nobody's certificate is looked at; add client_ca";
            self.report.mistake(
                path.key("client_crl"),
                "client_crl without client_ca",
                allowed,
            );
        }
        let clients = written.client_ca.as_ref().map(|ca| ClientCertificates {
            ca: self.path(ca, path.key("client_ca")),
            crl: written
                .client_crl
                .as_ref()
                .map(|crl| self.path(crl, path.key("client_crl"))),
            required: written.client_certificates != Some(file::ClientCertificates::Optional),
        });
        let policy = match written.policy {
            file::CipherPolicy::Intermediate => CipherPolicy::Intermediate,
            file::CipherPolicy::Modern => CipherPolicy::Modern,
        };
        ListenerTls {
            certificates,
            policy,
            min_version: match policy {
                CipherPolicy::Modern => TlsVersion::V1_3,
                CipherPolicy::Intermediate => tls_version(written.min_version),
            },
            clients,
        }
    }

    pub(super) fn tls_files(
        &mut self,
        certificate: &std::path::Path,
        private_key: &std::path::Path,
        path: KeyPath<'_>,
    ) -> TlsFiles {
        TlsFiles {
            certificate: self.path(certificate, path.key("certificate")),
            private_key: self.path(private_key, path.key("private_key")),
        }
    }
}
