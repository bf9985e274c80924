//! Decides how an operator's command reaches the gateway that a configuration is for: `server.admin`
//! alone is read, so that no other secret has to be there and nothing else has to be right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::secret::{Environment, Secret, SecretError, SecretText, Sources};
use super::{Layer, Mistake, file, schema, source};

/// Where the admin listener is, and what it asks for.
#[derive(Debug)]
pub struct Access {
    /// To connect to: a listener on every address is reached by the loopback one.
    pub address: SocketAddr,
    pub token: Option<Secret>,
}

/// Why a configuration leads to no admin listener.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("the configuration cannot be read")]
    Mistakes(Vec<Mistake>),
    #[error("there is no server.admin in the configuration, so its gateway answers no operators")]
    Nowhere,
    #[error("server.admin cannot be understood: {0}")]
    Malformed(String),
    #[error("server.admin.address is not an IP address and a port")]
    Address,
    #[error("server.admin.token: {0}")]
    Secret(SecretError),
}

/// Reads `server.admin` of these layers.
///
/// # Errors
/// If the files cannot be read as YAML, or what they say of it leads nowhere.
pub fn access(layers: &[Layer], environment: Environment<'_>) -> Result<Access, AccessError> {
    let source = source::read(layers, &schema::value()).map_err(AccessError::Mistakes)?;
    let server = source.root.get("server");
    let node = server.and_then(|server| server.get("admin"));
    let node = node.ok_or(AccessError::Nowhere)?;
    let written: Option<file::Admin> = serde_yaml::from_value(node.to_yaml())
        .map_err(|cause| AccessError::Malformed(cause.to_string()))?;
    let written = written.ok_or(AccessError::Nowhere)?;
    let address = written.address.parse().map_err(|_| AccessError::Address)?;
    let token = match (&written.token, node.get("token")) {
        (Some(text), Some(place)) => {
            let bases: Vec<_> = source
                .written
                .iter()
                .map(|file| file.base.clone())
                .collect();
            let sources = Sources {
                bases: &bases,
                environment,
            };
            let resolved = sources.resolve(text, place.place.file);
            Some(resolved.map_err(AccessError::Secret)?.secret)
        }
        _ => None,
    };
    Ok(Access {
        address: reachable(address),
        token,
    })
}

/// Follows a reference that stands on the command line; relative paths start at the working
/// directory.
///
/// # Errors
/// If `text` is no reference, or there is no secret behind it. What was found is not told.
pub fn named(text: &str, environment: Environment<'_>) -> Result<Secret, SecretError> {
    let bases = [Some(PathBuf::new())];
    let sources = Sources {
        bases: &bases,
        environment,
    };
    let resolved = sources.resolve(&SecretText::new(text.to_owned()), 0)?;
    Ok(resolved.secret)
}

fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::sync::Arc;

    fn read(text: &str) -> Result<Access, AccessError> {
        let layer = Layer::Text {
            name: "tidegate.yaml".to_owned(),
            bytes: Arc::from(text.as_bytes()),
        };
        access(&[layer], &environment)
    }

    fn environment(name: &str) -> Option<OsString> {
        (name == "ADMIN").then(|| OsString::from("the-token"))
    }

    #[test]
    fn nothing_but_the_admin_listener_has_to_be_right() {
        let access = read(
            "server: {admin: {address: '0.0.0.0:9080', token: '${env:ADMIN}'}}\n\
             upstreams: [{id: x, accounts: [{id: a, api_key: '${env:NOT_HERE}'}]}]\n\
             nonsense: 1\n",
        );
        let access = access.unwrap();
        assert_eq!(access.address, "127.0.0.1:9080".parse().unwrap());
        assert_eq!(access.token.unwrap().expose(), "the-token");
    }

    #[test]
    fn what_leads_nowhere_is_said() {
        assert!(matches!(read("plans: {}\n"), Err(AccessError::Nowhere)));
        assert!(matches!(
            read("server: {admin: {address: here}}\n"),
            Err(AccessError::Address)
        ));
        assert!(matches!(
            read("server: {admin: {address: '127.0.0.1:1', token: '${env:NOT_HERE}'}}\n"),
            Err(AccessError::Secret(SecretError::Unset(_)))
        ));
        assert!(matches!(
            read("server: {admin: {adress: '127.0.0.1:1'}}\n"),
            Err(AccessError::Malformed(_))
        ));
    }

    #[test]
    fn a_token_on_the_command_line_is_a_reference_or_nothing() {
        assert_eq!(
            named("${env:ADMIN}", &environment).unwrap().expose(),
            "the-token"
        );
        let error = named("the-token", &environment).unwrap_err();
        assert_eq!(error, SecretError::NotAReference);
        assert!(!error.to_string().contains("the-token"));
    }
}
