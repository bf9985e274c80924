//! Keys that tokens and requests are held against. Of the pairs, the private halves exist nowhere any
//! more; the tokens among the seeds were signed by them.

pub const SECRET: &[u8] = b"a-secret-for-fuzzing-and-nothing-else";

pub const RSA: &[u8] = b"\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAygnZbEZ9OBCVyxHqgDu4
CJo+L9K6CfYVRfeue+3pVSrIXxOt1JXb2QKXhl6fQe4bvLNfHbABJDtqun6L49dI
Y6Srf2EcvuTG3/jfKBYfGZ9UEczNuX3XFREy8+l47g5C4zdSjcVc7JKzEUubBE1y
7Ol/AZA3MQewg+fMJmyD7j/ytJ28SFqn0Flp4JVyCUOc6cxoevLTH+PquUMM6qnc
4QnLrCjiThFnHwI9JJqOOVAFFroDC16VgDxjxvdnDjZvw3g+1+R+vqeKwsnh9LY/
illquWcHWpYs135s6B+FpmiAPfjQLDnAV5TAi7IIqjjlB89ijjXcR0xjhPRu7a4C
8wIDAQAB
-----END PUBLIC KEY-----
";

pub const P256: &[u8] = b"\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEv1hA8GbeuqBbRwBec7+SYscSE+PE
VdF8kZINuhRG91FlU5vrlPx/OYzsPhbecnoModdbEKJXLDm2wtk8dJAlyA==
-----END PUBLIC KEY-----
";

pub const ED25519: &[u8] = b"\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEApnpFjaRVbO+y+GB4Y3gC0WhsqVWVLEhdEZybP7Gs+ts=
-----END PUBLIC KEY-----
";
