use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::X509;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{ALL, Issuer, PUBLIC, encode, issuer, stranger};
use super::*;

const MESSAGE: &str = "header.payload";

fn jwks(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}

fn read(keys: &[Value], algorithm: Algorithm) -> Result<KeySet, KeySetError> {
    KeySet::from_jwks(&jwks(keys), algorithm)
}

fn checked(set: &KeySet, id: Option<&str>, signer: &Issuer) -> Result<(), TokenError> {
    set.check(id, MESSAGE.as_bytes(), &signer.signature(MESSAGE))
}

fn with(mut jwk: Value, name: &str, value: Value) -> Value {
    jwk[name] = value;
    jwk
}

#[test]
fn a_named_key_is_asked_alone_and_an_unknown_name_is_told_from_a_bad_signature() {
    for algorithm in PUBLIC {
        let (own, other) = (issuer(algorithm), stranger(algorithm));
        let set = read(&[own.jwk(Some("a")), other.jwk(Some("b"))], algorithm).unwrap();
        assert_eq!(checked(&set, Some("a"), own), Ok(()));
        assert_eq!(checked(&set, Some("b"), other), Ok(()));
        assert_eq!(checked(&set, Some("b"), own), Err(TokenError::BadSignature));
        assert_eq!(checked(&set, Some("c"), own), Err(TokenError::UnknownKey));
        assert_eq!(checked(&set, Some(""), own), Err(TokenError::UnknownKey));
        assert_eq!(checked(&set, None, own), Ok(()));
        assert_eq!(checked(&set, None, other), Ok(()));

        let alone = read(&[own.jwk(Some("a"))], algorithm).unwrap();
        assert_eq!(checked(&alone, None, other), Err(TokenError::BadSignature));
        let nameless = read(&[own.jwk(None)], algorithm).unwrap();
        assert_eq!(checked(&nameless, Some("c"), own), Ok(()));
        assert_eq!(
            checked(&nameless, Some("c"), other),
            Err(TokenError::UnknownKey)
        );
        assert_eq!(
            checked(&nameless, None, other),
            Err(TokenError::BadSignature)
        );
    }
}

#[test]
fn sets_without_names_ignore_the_name_in_a_token() {
    for algorithm in ALL {
        let own = issuer(algorithm);
        assert_eq!(checked(&own.keys, Some("any"), own), Ok(()));
        let refused = checked(&own.keys, Some("any"), stranger(algorithm));
        assert_eq!(refused, Err(TokenError::BadSignature));
    }
}

#[test]
fn keys_that_are_not_for_us_are_passed_over() {
    for algorithm in PUBLIC {
        let jwk = || issuer(algorithm).jwk(Some("a"));
        let good = issuer(algorithm).jwk(Some("good"));
        let foreign = [
            (with(jwk(), "kty", json!("oct")), KeyFault::OtherType),
            (with(jwk(), "kty", json!(null)), KeyFault::OtherType),
            (
                json!({"kty": "oct", "k": encode([1; 32])}),
                KeyFault::OtherType,
            ),
            (with(jwk(), "use", json!("enc")), KeyFault::OtherUse),
            (with(jwk(), "use", json!(1)), KeyFault::OtherUse),
            (with(jwk(), "key_ops", json!(["sign"])), KeyFault::OtherUse),
            (with(jwk(), "key_ops", json!("verify")), KeyFault::OtherUse),
            (
                with(jwk(), "alg", json!("RSA-OAEP")),
                KeyFault::OtherAlgorithm,
            ),
            (with(jwk(), "alg", json!("none")), KeyFault::OtherAlgorithm),
            (with(jwk(), "alg", json!(null)), KeyFault::OtherAlgorithm),
            (with(jwk(), "kid", json!(1)), KeyFault::Unreadable),
            (json!([]), KeyFault::Unreadable),
            (json!(1), KeyFault::Unreadable),
        ];
        for (jwk, fault) in foreign {
            let refused = read(std::slice::from_ref(&jwk), algorithm).err();
            let expected = KeySetError::NoUsableKey {
                skipped: 1,
                first: fault,
            };
            assert_eq!(refused, Some(expected), "{jwk}");
            let set = read(&[jwk, good.clone()], algorithm).unwrap();
            assert_eq!((set.usable(), set.skipped()), (1, 1));
        }
        for other in PUBLIC.into_iter().filter(|other| *other != algorithm) {
            assert!(read(&[issuer(other).jwk(None)], algorithm).is_err());
        }
        let meant = with(good, "use", json!("sig"));
        let meant = with(meant, "alg", json!(algorithm.as_str()));
        let meant = with(meant, "key_ops", json!(["verify"]));
        assert!(read(&[meant], algorithm).is_ok());
    }
}

#[test]
fn keys_of_wrong_numbers_are_passed_over() {
    use Algorithm::{EdDsa, Es256, Rs256};
    let other_curve = with(issuer(Es256).jwk(None), "crv", json!("P-384"));
    let cases = [
        (Rs256, "n", json!(encode([0xff; 128])), KeyFault::Modulus),
        (Rs256, "n", json!(encode([0xff; 1025])), KeyFault::Modulus),
        (Rs256, "n", json!("+/=="), KeyFault::Unreadable),
        (Rs256, "n", json!(65537), KeyFault::Unreadable),
        (Rs256, "n", json!(""), KeyFault::Modulus),
        (Rs256, "e", json!("AQ"), KeyFault::Exponent),
        (Rs256, "e", json!(encode([0xff; 9])), KeyFault::Exponent),
        (Rs256, "e", json!(null), KeyFault::Unreadable),
        (Es256, "x", json!(encode([0; 32])), KeyFault::OffCurve),
        (Es256, "y", json!(encode([0xff; 32])), KeyFault::OffCurve),
        (Es256, "x", json!(encode([1; 31])), KeyFault::Unreadable),
        (Es256, "y", json!(null), KeyFault::Unreadable),
        (Es256, "crv", json!("P-384"), KeyFault::OtherType),
        (Es256, "crv", json!("secp256k1"), KeyFault::OtherType),
        (EdDsa, "x", json!(encode([0; 32])), KeyFault::SmallOrder),
        (EdDsa, "x", json!(encode([1; 33])), KeyFault::Unreadable),
        (EdDsa, "crv", json!("X25519"), KeyFault::OtherType),
        (EdDsa, "crv", json!("Ed448"), KeyFault::OtherType),
    ];
    for (algorithm, name, value, fault) in cases {
        let jwk = with(issuer(algorithm).jwk(None), name, value.clone());
        let expected = KeySetError::NoUsableKey {
            skipped: 1,
            first: fault,
        };
        assert_eq!(
            read(&[jwk], algorithm).err(),
            Some(expected),
            "{name} {value}"
        );
    }
    assert!(read(&[other_curve], Es256).is_err());
    // Leading zeros, which some issuers write.
    let key = issuer(Rs256).key.rsa().unwrap();
    let zero = encode([&[0][..], &key.n().to_vec()].concat());
    assert!(read(&[with(issuer(Rs256).jwk(None), "n", json!(zero))], Rs256).is_ok());
    let private = with(
        issuer(Rs256).jwk(None),
        "d",
        json!(encode(key.d().to_vec())),
    );
    assert!(read(&[private], Rs256).is_ok());
}

#[test]
fn a_set_has_distinct_names_and_a_bounded_size() {
    for algorithm in PUBLIC {
        let (own, other) = (issuer(algorithm), stranger(algorithm));
        let twice = read(&[own.jwk(Some("a")), other.jwk(Some("a"))], algorithm);
        assert_eq!(twice.err(), Some(KeySetError::DuplicateKeyId));
        // RFC 7517 §4.5 lets keys for different uses share a name.
        let elsewhere = with(other.jwk(Some("a")), "use", json!("enc"));
        assert!(read(&[own.jwk(Some("a")), elsewhere], algorithm).is_ok());
        assert!(read(&[own.jwk(None), other.jwk(None)], algorithm).is_ok());

        let many: Vec<Value> = (0..101).map(|id| own.jwk(Some(&id.to_string()))).collect();
        assert_eq!(read(&many[..100], algorithm).unwrap().usable(), 100);
        assert_eq!(read(&many, algorithm).err(), Some(KeySetError::TooManyKeys));
        let huge = vec![b' '; MAX_SET_BYTES + 1];
        assert_eq!(
            KeySet::from_jwks(&huge, algorithm).err(),
            Some(KeySetError::TooLarge)
        );
        assert_eq!(
            KeySet::from_pem(&huge, algorithm).err(),
            Some(KeySetError::TooLarge)
        );
        assert_eq!(read(&[], algorithm).err(), Some(KeySetError::Empty));
        for bad in [
            "",
            "[]",
            "{}",
            "{\"keys\":{}}",
            "{\"keys\":[],\"keys\":[]}",
            "<html>",
        ] {
            let refused = KeySet::from_jwks(bad.as_bytes(), algorithm).err();
            assert!(matches!(refused, Some(KeySetError::Malformed(_))), "{bad}");
        }
    }
}

#[test]
fn a_token_that_names_no_key_is_tried_with_eight_at_most() {
    let (own, other) = (issuer(Algorithm::EdDsa), stranger(Algorithm::EdDsa));
    let mut keys: Vec<Value> = (0..7).map(|id| other.jwk(Some(&id.to_string()))).collect();
    keys.push(own.jwk(Some("own")));
    let set = read(&keys, Algorithm::EdDsa).unwrap();
    assert_eq!(checked(&set, None, own), Ok(()));
    keys.insert(0, other.jwk(Some("first")));
    let set = read(&keys, Algorithm::EdDsa).unwrap();
    assert_eq!(checked(&set, None, own), Err(TokenError::BadSignature));
    assert_eq!(checked(&set, Some("own"), own), Ok(()));
}

fn certificate(issuer: &Issuer) -> Vec<u8> {
    let mut made = X509::builder().unwrap();
    made.set_pubkey(&issuer.key).unwrap();
    made.set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    made.set_not_after(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    let digest = match issuer.algorithm {
        Algorithm::EdDsa => MessageDigest::null(),
        _ => MessageDigest::sha256(),
    };
    made.sign(&issuer.key, digest).unwrap();
    made.build().to_pem().unwrap()
}

#[test]
fn pem_files_hold_public_keys_and_certificates() {
    for algorithm in PUBLIC {
        let (own, other) = (issuer(algorithm), stranger(algorithm));
        let mut file = b"# our keys\r\n".to_vec();
        file.extend(certificate(own));
        file.extend(b"and the old one\n");
        file.extend(other.key.public_key_to_pem().unwrap());
        for file in [
            file.clone(),
            String::from_utf8(file)
                .unwrap()
                .replace('\n', "\r\n")
                .into(),
        ] {
            let set = KeySet::from_pem(&file, algorithm).unwrap();
            assert_eq!(set.usable(), 2);
            assert_eq!(checked(&set, None, own), Ok(()));
            assert_eq!(checked(&set, Some("x"), other), Ok(()));
        }
    }
}

#[test]
fn each_wrong_pem_block_is_refused_for_its_own_reason() {
    for algorithm in PUBLIC {
        let good = issuer(algorithm).key.public_key_to_pem().unwrap();
        let block = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let unreadable = KeySetError::Unusable {
            block: 2,
            fault: KeyFault::Unreadable,
        };
        let private = issuer(algorithm).key.private_key_to_pem_pkcs8().unwrap();
        let cases = [
            (
                String::from_utf8(private).unwrap(),
                KeySetError::PrivateKey { block: 2 },
            ),
            (
                block("RSA PRIVATE KEY", "AAAA"),
                KeySetError::PrivateKey { block: 2 },
            ),
            (
                block("EC PARAMETERS", "AAAA"),
                KeySetError::OtherBlock { block: 2 },
            ),
            (block("PUBLIC KEY", "AAAA"), unreadable),
            (block("PUBLIC KEY", ""), unreadable),
            (block("PUBLIC KEY", "Proc-Type: 4,ENCRYPTED"), unreadable),
            (block("CERTIFICATE", "AAAA"), unreadable),
        ];
        for (second, expected) in cases {
            let file = [&good[..], second.as_bytes()].concat();
            assert_eq!(
                KeySet::from_pem(&file, algorithm).err(),
                Some(expected),
                "{second}"
            );
        }
        for other in PUBLIC.into_iter().filter(|other| *other != algorithm) {
            let expected = KeySetError::Unusable {
                block: 1,
                fault: KeyFault::OtherType,
            };
            assert_eq!(KeySet::from_pem(&good, other).err(), Some(expected));
        }
        for cut in [20, 40, good.len() - 10] {
            let refused = KeySet::from_pem(&good[..cut], algorithm).err();
            assert!(matches!(refused, Some(KeySetError::Malformed(_))), "{cut}");
        }
        assert_eq!(
            KeySet::from_pem(b"", algorithm).err(),
            Some(KeySetError::Empty)
        );
        let many = good.repeat(101);
        assert_eq!(
            KeySet::from_pem(&many, algorithm).err(),
            Some(KeySetError::TooManyKeys)
        );
    }
}

#[test]
fn weak_and_foreign_keys_in_pem_are_refused_too() {
    let weak = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
    let refused = |key: &PKey<openssl::pkey::Private>, algorithm| {
        let pem = key.public_key_to_pem().unwrap();
        match KeySet::from_pem(&pem, algorithm).err() {
            Some(KeySetError::Unusable { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&weak, Algorithm::Rs256), KeyFault::Modulus);
    let group = openssl::ec::EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
    let curve = PKey::from_ec_key(openssl::ec::EcKey::generate(&group).unwrap()).unwrap();
    assert_eq!(refused(&curve, Algorithm::Es256), KeyFault::OtherType);
    let curve = PKey::generate_ed448().unwrap();
    assert_eq!(refused(&curve, Algorithm::EdDsa), KeyFault::OtherType);
    let curve = PKey::generate_x25519().unwrap();
    assert_eq!(refused(&curve, Algorithm::EdDsa), KeyFault::OtherType);
}

#[test]
fn secrets_are_long_enough_and_no_key_files_and_never_printed() {
    assert_eq!(
        KeySet::from_secret(b"").err(),
        Some(KeySetError::ShortSecret)
    );
    assert_eq!(
        KeySet::from_secret(&[1; 31]).err(),
        Some(KeySetError::ShortSecret)
    );
    let set = KeySet::from_secret(&[b'q'; 32]).unwrap();
    assert_eq!(
        format!("{set:?}"),
        "KeySet { algorithm: Hs256, usable: 1, .. }"
    );
    for make in [KeySet::from_jwks, KeySet::from_pem] {
        let refused = make(&[b'q'; 32], Algorithm::Hs256).err();
        assert_eq!(refused, Some(KeySetError::NeedsSecret));
    }
}

#[test]
fn a_set_fetched_again_unchanged_is_known_to_be_the_same() {
    for algorithm in PUBLIC {
        let (own, other) = (issuer(algorithm), stranger(algorithm));
        let set = |keys: &[Value]| read(keys, algorithm).unwrap();
        let first = set(&[own.jwk(Some("a")), other.jwk(Some("b"))]);
        assert!(first.same_keys(&set(&[other.jwk(Some("b")), own.jwk(Some("a"))])));
        assert!(!first.same_keys(&set(&[other.jwk(Some("a")), own.jwk(Some("b"))])));
        assert!(!first.same_keys(&set(&[own.jwk(Some("a"))])));
        assert!(!set(&[own.jwk(None)]).same_keys(&set(&[own.jwk(Some(""))])));
    }
    let (one, two) = ([1; 32], [2; 32]);
    let secret = |bytes: &[u8]| KeySet::from_secret(bytes).unwrap();
    assert!(secret(&one).same_keys(&secret(&one)));
    assert!(!secret(&one).same_keys(&secret(&two)));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in any::<proptest::sample::Index>(), other in any::<u8>()) {
        for algorithm in PUBLIC {
            let _ = KeySet::from_jwks(&bytes, algorithm);
            let _ = KeySet::from_pem(&bytes, algorithm);
            for mut file in [certificate_of(algorithm), jwks(&[issuer(algorithm).jwk(Some("a"))])] {
                let at = cut.index(file.len());
                file[at] = other;
                let _ = KeySet::from_jwks(&file, algorithm);
                let _ = KeySet::from_pem(&file, algorithm);
            }
        }
    }
}

fn certificate_of(algorithm: Algorithm) -> Vec<u8> {
    static MADE: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    let made = MADE.get_or_init(|| {
        PUBLIC
            .map(|algorithm| certificate(issuer(algorithm)))
            .to_vec()
    });
    made[PUBLIC.iter().position(|own| *own == algorithm).unwrap()].clone()
}
