//! What the gateway is compared with: Pingora with its defaults, passing everything through.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

use crate::Outcome;
use crate::stage::{IDLE_CONNECTIONS, THREADS};

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    #[expect(
        clippy::disallowed_methods,
        reason = "from an address that needs no resolving"
    )]
    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _ctx: &mut (),
    ) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

/// Listens on the first address, passes on to the second; never returns.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Outcome<()> {
    let listen = arguments.next().ok_or("no address to listen on")?;
    let upstream = arguments.next().ok_or("no upstream")?.parse()?;
    let conf = ServerConf {
        threads: THREADS,
        upstream_keepalive_pool_size: IDLE_CONNECTIONS,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let conf: Arc<ServerConf> = server.configuration.clone();
    let mut service = http_proxy_service(&conf, Bare { upstream });
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever()
}
