//! Decides how IP networks are written in the file, and which addresses lie in a list of them. What
//! is trusted or allowed because of that is for others to say.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a network must look like, for a person.
pub const NETWORK_FORM: &str =
    "an address or a network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32";

/// Why a text is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("is not of that form")]
    Form,
    #[error("has a prefix longer than {longest} bits")]
    Prefix { longest: u8 },
    /// Somebody meant either the network or the one address; a guess could open a door.
    #[error(
        "has bits set beyond its prefix: write {network} for the network or {address} for the one address"
    )]
    HostBits { network: IpNet, address: IpAddr },
}

/// Reads a network: an address, alone or with `/` and the length of its prefix in bits.
///
/// # Errors
/// If it is neither, if the prefix is longer than the address, or if bits beyond it are set.
pub fn parse_network(text: &str) -> Result<IpNet, NetworkError> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| NetworkError::Form)?;
    let Some(prefix) = prefix else {
        return Ok(IpNet::from(address));
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let network = IpNet::new(address, prefix_length(prefix)?)
        .map_err(|_| NetworkError::Prefix { longest })?;
    if network.network() != address {
        return Err(NetworkError::HostBits {
            network: network.trunc(),
            address,
        });
    }
    Ok(network)
}

fn prefix_length(text: &str) -> Result<u8, NetworkError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    if !plain || text.is_empty() || text.len() > 3 || (text.len() > 1 && text.starts_with('0')) {
        return Err(NetworkError::Form);
    }
    // Three digits that do not fit are more than any address has.
    Ok(text.parse().unwrap_or(u8::MAX))
}

/// Prints a network in the form [`parse_network`] reads; a single address without its prefix.
pub fn format_network(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// A network as the file has it: `10.0.0.0/8`, `192.0.2.7`, `2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkText(pub IpNet);

impl Serialize for NetworkText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_network(self.0))
    }
}

impl<'de> Deserialize<'de> for NetworkText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        parse_network(&text)
            .map(Self)
            .map_err(|why| de::Error::custom(format!("{why}; expected {NETWORK_FORM}")))
    }
}

impl JsonSchema for NetworkText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$",
            "x-tidegate-kind": "network",
        })
    }
}

/// A set of IP networks.
///
/// Kept as sorted ranges that neither touch nor overlap, so that asking costs a binary search, and
/// two lists of the same addresses are equal however they were written.
///
/// IPv4 addresses that are mapped into IPv6 (`::ffff:192.0.2.7`, RFC 4291 §2.5.5.2) count as IPv4,
/// in the set and in the question. So `::/0` holds no IPv4 address.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    /// Does the address lie in one of the networks?
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => holds(&self.v4, address.into()),
            IpAddr::V6(address) => holds(&self.v6, address.into()),
        }
    }

    /// Is there no network in it?
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            let (first, last) = (network.network(), network.broadcast());
            // The last address of `::/0` is not mapped, so only a wholly mapped network changes.
            match (first.to_canonical(), last.to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.into(), last.into())),
                _ => {
                    if let (IpAddr::V6(first), IpAddr::V6(last)) = (first, last) {
                        v6.push((first.into(), last.into()));
                    }
                }
            }
        }
        Self {
            v4: merged(v4, |last| last.checked_add(1)),
            v6: merged(v6, |last| last.checked_add(1)),
        }
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.v4.iter().map(|(first, last)| {
            (
                IpAddr::V4((*first).into()).to_string(),
                IpAddr::V4((*last).into()).to_string(),
            )
        });
        let v6 = self.v6.iter().map(|(first, last)| {
            (
                IpAddr::V6((*first).into()).to_string(),
                IpAddr::V6((*last).into()).to_string(),
            )
        });
        f.write_str("Networks")?;
        f.debug_set().entries(v4.chain(v6)).finish()
    }
}

/// Sorts ranges and joins those that touch or overlap.
fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|later, kept| {
        let joins = later.0 <= kept.1 || next(kept.1) == Some(later.0);
        if joins {
            kept.1 = kept.1.max(later.1);
        }
        joins
    });
    ranges.into_boxed_slice()
}

fn holds<T: Ord>(ranges: &[(T, T)], address: T) -> bool {
    ranges
        .partition_point(|(first, _)| *first <= address)
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(texts: &[&str]) -> Networks {
        texts
            .iter()
            .map(|text| parse_network(text).unwrap())
            .collect()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_and_single_addresses_are_read() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "192.0.2.7",
            "2001:db8::/32",
            "::1",
            "::/0",
        ] {
            assert_eq!(format_network(parse_network(text).unwrap()), text);
        }
        assert_eq!(parse_network("192.0.2.7/32"), parse_network("192.0.2.7"));
    }

    #[test]
    fn whatever_else_is_written_is_refused() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10/8",
            "10.0.0/8",
            "010.0.0.0/8",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/1000",
            "10.0.0.0/255.0.0.0",
            "localhost",
            "[::1]",
            "fe80::1%eth0",
            "10.0.0.0/٨",
        ] {
            assert_eq!(parse_network(text), Err(NetworkError::Form), "{text}");
        }
        for (text, longest) in [("10.0.0.0/33", 32), ("::/129", 128), ("::/999", 128)] {
            assert_eq!(
                parse_network(text),
                Err(NetworkError::Prefix { longest }),
                "{text}"
            );
        }
    }

    #[test]
    fn bits_beyond_the_prefix_are_refused_with_what_was_meant() {
        assert_eq!(
            parse_network("10.0.0.1/8").unwrap_err().to_string(),
            "has bits set beyond its prefix: write 10.0.0.0/8 for the network or 10.0.0.1 for the one address"
        );
        assert!(matches!(
            parse_network("2001:db8::1/32"),
            Err(NetworkError::HostBits { .. })
        ));
    }

    #[test]
    fn the_file_holds_networks_as_text() {
        let read = serde_json::from_str::<NetworkText>("\"10.0.0.0/8\"").unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"10.0.0.0/8\"");
        let error = serde_json::from_str::<NetworkText>("\"10\"").unwrap_err();
        assert!(error.to_string().contains(NETWORK_FORM), "{error}");
        let schema = SchemaGenerator::default().subschema_for::<NetworkText>();
        assert_eq!(schema.get("x-tidegate-kind"), Some(&"network".into()));
    }

    #[test]
    fn mapped_addresses_count_as_ipv4() {
        let v4 = networks(&["10.0.0.0/8"]);
        assert!(v4.contains(address("::ffff:10.1.2.3")));
        assert!(!v4.contains(address("::10.1.2.3")));
        assert_eq!(networks(&["::ffff:10.0.0.0/104"]), v4);
        let all_v6 = networks(&["::/0"]);
        assert!(all_v6.contains(address("2001:db8::1")));
        assert!(!all_v6.contains(address("::ffff:10.1.2.3")));
        assert!(!all_v6.contains(address("10.1.2.3")));
    }

    #[test]
    fn the_edges_of_a_network_belong_to_it() {
        let set = networks(&["10.0.0.0/30", "255.255.255.255", "0.0.0.0", "ffff::/16"]);
        for inside in [
            "10.0.0.0",
            "10.0.0.3",
            "255.255.255.255",
            "0.0.0.0",
            "ffff:ffff::",
        ] {
            assert!(set.contains(address(inside)), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "10.0.0.4",
            "255.255.255.254",
            "0.0.0.1",
            "fffe::",
        ] {
            assert!(!set.contains(address(outside)), "{outside}");
        }
        assert!(Networks::default().is_empty() && !set.is_empty());
        assert!(!Networks::default().contains(address("10.0.0.1")));
    }

    #[test]
    fn lists_of_the_same_addresses_are_equal() {
        assert_eq!(
            networks(&["10.128.0.0/9", "10.0.0.0/9", "10.1.0.0/16"]),
            networks(&["10.0.0.0/8"])
        );
        assert_ne!(networks(&["10.0.0.0/9"]), networks(&["10.0.0.0/8"]));
        assert_eq!(
            format!("{:?}", networks(&["10.0.0.0/9", "10.128.0.0/9"])),
            r#"Networks{("10.0.0.0", "10.255.255.255")}"#
        );
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        // Few bits vary, so that networks overlap and addresses meet them.
        prop_oneof![
            (0..=0xff_u32, 20..=32_u8).prop_map(|(low, prefix)| {
                IpNet::new(IpAddr::V4((0x0a00_0000 | low << 4).into()), prefix)
                    .unwrap()
                    .trunc()
            }),
            (0..=0xff_u128, 116..=128_u8).prop_map(|(low, prefix)| {
                IpNet::new(IpAddr::V6((1_u128 << 125 | low << 4).into()), prefix)
                    .unwrap()
                    .trunc()
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_set_says_what_its_networks_say(
            list in proptest::collection::vec(any_network(), 0..40),
            low in 0..=0xfff_u32,
        ) {
            let set: Networks = list.iter().copied().collect();
            let reversed: Networks = list.iter().rev().copied().collect();
            prop_assert_eq!(&set, &reversed);
            let v4 = IpAddr::V4((0x0a00_0000 | low).into());
            let v6 = IpAddr::V6((1_u128 << 125 | u128::from(low)).into());
            for address in [v4, v6] {
                prop_assert_eq!(set.contains(address), list.iter().any(|net| net.contains(&address)));
            }
        }

        #[test]
        fn what_is_printed_is_read_back(network in any_network()) {
            prop_assert_eq!(parse_network(&format_network(network)), Ok(network));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9a-f.:/]{0,40}|.*") {
            let _ = parse_network(&text);
        }
    }
}
