//! How Redis is reached: one node, a master that sentinels name, or a cluster; with TLS, user and
//! password. It knows nothing of what is said over the connection.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisConnectionInfo, RedisFuture, RedisResult, TlsCertificates, Value,
};

use crate::config::settings::{RedisNodes, RedisStore};

/// From the look-up of the name to the end of the handshake, of one node.
pub const CONNECT: Duration = Duration::from_secs(1);
/// An answer that nobody's deadline waits for any more is given up.
pub const ANSWER: Duration = Duration::from_secs(2);
/// Of a cluster's redirections and of questions whose connection broke; the scripts know repetitions.
const CLUSTER_RETRIES: u32 = 2;

/// What cannot be mended by waiting.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}: not host:port")]
    Address(String),
    #[error("the CA bundle {path} cannot be used: {cause}")]
    Ca { path: PathBuf, cause: String },
    #[error(
        "a cluster takes its authorities from the system; a CA bundle of its own is not supported"
    )]
    ClusterCa,
    #[error("no randomness: {0}")]
    Random(String),
    #[error("the settings cannot be used: {0}")]
    Settings(String),
}

/// Knows how to connect; holds no connection.
pub(super) struct Connector(Way);

enum Way {
    One(Client),
    Sentinel {
        sentinels: Vec<Client>,
        master: String,
        node: Node,
    },
    Cluster(Box<ClusterClient>),
}

/// What is the same for each node.
#[derive(Clone)]
struct Node {
    settings: RedisConnectionInfo,
    tls: bool,
    ca: Option<Vec<u8>>,
}

/// A live connection, shared by all who ask.
#[derive(Clone)]
pub(super) enum Link {
    One(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Connector {
    /// Reads the CA bundle; asks nobody.
    ///
    /// # Errors
    /// If the settings cannot lead anywhere.
    pub fn new(store: &RedisStore) -> Result<Self, ConnectError> {
        let node = Node::new(store)?;
        Ok(Self(match &store.nodes {
            RedisNodes::One(address) => Way::One(node.client(address)?),
            RedisNodes::Sentinel { nodes, master } => Way::Sentinel {
                sentinels: node.sentinels(nodes)?,
                master: master.clone(),
                node,
            },
            RedisNodes::Cluster(_) if node.ca.is_some() => return Err(ConnectError::ClusterCa),
            RedisNodes::Cluster(nodes) => Way::Cluster(Box::new(node.cluster(nodes)?)),
        }))
    }

    /// A new connection.
    ///
    /// # Errors
    /// If there is none now.
    pub async fn connect(&self) -> RedisResult<Link> {
        let client = match &self.0 {
            Way::Cluster(client) => {
                return Ok(Link::Cluster(client.get_async_connection().await?));
            }
            Way::One(client) => client.clone(),
            Way::Sentinel {
                sentinels,
                master,
                node,
            } => master_of(sentinels, master, node).await?,
        };
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(ANSWER));
        let manager = ConnectionManager::new_with_config(client, config).await?;
        Ok(Link::One(manager))
    }
}

impl Node {
    fn new(store: &RedisStore) -> Result<Self, ConnectError> {
        // RESP2 and no CLIENT SETINFO: less to allow in an access list.
        let mut settings = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name()
            .set_db(store.database.into());
        if let Some(username) = &store.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &store.password {
            settings = settings.set_password(password.expose());
        }
        let ca = match &store.ca {
            Some(path) if store.tls => {
                let pem = std::fs::read(path).map_err(|e| ConnectError::Ca {
                    path: path.clone(),
                    cause: e.to_string(),
                })?;
                Some(pem)
            }
            _ => None,
        };
        let node = Self {
            settings,
            tls: store.tls,
            ca,
        };
        if let Some(path) = store.ca.as_ref().filter(|_| node.ca.is_some()) {
            let tried = node.open(("localhost".to_owned(), 1), RedisConnectionInfo::default());
            tried.map_err(|e| ConnectError::Ca {
                path: path.clone(),
                cause: e.to_string(),
            })?;
        }
        Ok(node)
    }

    fn info(
        &self,
        (host, port): (String, u16),
        settings: RedisConnectionInfo,
    ) -> RedisResult<ConnectionInfo> {
        let address = if self.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Ok(address.into_connection_info()?.set_redis_settings(settings))
    }

    fn open(&self, at: (String, u16), settings: RedisConnectionInfo) -> RedisResult<Client> {
        let info = self.info(at, settings)?;
        if !self.tls {
            return Client::open(info);
        }
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: self.ca.clone(),
        };
        Client::build_with_tls(info, certificates)
    }

    fn client(&self, address: &str) -> Result<Client, ConnectError> {
        self.open(host_and_port(address)?, self.settings.clone())
            .map_err(|e| ConnectError::Settings(e.to_string()))
    }

    /// Sentinels may have the nodes' password or none: each is asked without one, then with it.
    fn sentinels(&self, addresses: &[String]) -> Result<Vec<Client>, ConnectError> {
        let bare = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        let mut clients = Vec::new();
        for settings in [bare, self.settings.clone().set_db(0)] {
            for address in addresses {
                let client = self.open(host_and_port(address)?, settings.clone());
                clients.push(client.map_err(|e| ConnectError::Settings(e.to_string()))?);
            }
        }
        Ok(clients)
    }

    fn cluster(&self, addresses: &[String]) -> Result<ClusterClient, ConnectError> {
        let failed = |e: redis::RedisError| ConnectError::Settings(e.to_string());
        let mut nodes = Vec::new();
        for address in addresses {
            let info = self.info(host_and_port(address)?, self.settings.clone());
            nodes.push(info.map_err(failed)?);
        }
        ClusterClient::builder(nodes)
            .retries(CLUSTER_RETRIES)
            .connection_timeout(CONNECT)
            .response_timeout(ANSWER)
            .use_protocol(ProtocolVersion::RESP2)
            .build()
            .map_err(failed)
    }
}

/// Asks one sentinel after the other, and the node whether it knows that it is the master.
async fn master_of(sentinels: &[Client], master: &str, node: &Node) -> RedisResult<Client> {
    let mut failure = redis::RedisError::from((
        redis::ErrorKind::MasterNameNotFoundBySentinel,
        "no sentinel knows the master",
    ));
    for sentinel in sentinels {
        match master_by(sentinel, master, node).await {
            Ok(Some(client)) => return Ok(client),
            Ok(None) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn master_by(sentinel: &Client, master: &str, node: &Node) -> RedisResult<Option<Client>> {
    let mut asked = sentinel.get_multiplexed_async_connection().await?;
    let at: Option<(String, u16)> = redis::cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(master)
        .query_async(&mut asked)
        .await?;
    let Some(at) = at else {
        return Ok(None);
    };
    let client = node.open(at, node.settings.clone())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut connection).await?;
    let is_master = matches!(role.first(), Some(Value::BulkString(role)) if role == b"master");
    Ok(is_master.then_some(client))
}

/// `[::1]:6379` too.
fn host_and_port(address: &str) -> Result<(String, u16), ConnectError> {
    let wrong = || ConnectError::Address(address.to_owned());
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_| wrong())?;
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(link) => link.req_packed_command(cmd),
            Self::Cluster(link) => link.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(link) => link.req_packed_commands(cmd, offset, count),
            Self::Cluster(link) => link.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(link) => link.get_db(),
            Self::Cluster(link) => link.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let read = |text| host_and_port(text).ok();
        assert_eq!(read("redis:6379"), Some(("redis".to_owned(), 6379)));
        assert_eq!(read("[::1]:6380"), Some(("::1".to_owned(), 6380)));
        for wrong in ["redis", "redis:", ":6379", "redis:70000", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
