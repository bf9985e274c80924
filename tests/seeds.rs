//! The seeds of the fuzz targets, run through them without a fuzzer. So the targets are compiled and
//! their assertions hold wherever the tests run; fuzzing itself needs another toolchain and time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests may stop loudly"
)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

/// Runs every seed of a target; that there are none is a mistake in a name.
fn seeds_pass(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut count = 0;
    for seed in std::fs::read_dir(folder).unwrap() {
        check(&std::fs::read(seed.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0);
    check(b"");
}

macro_rules! targets {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            seeds_pass(stringify!($target), targets::$target::check);
        }
    )*};
}

targets! {
    answer api_key balance client_address head json key_set proxy_protocol scan signature sse token
}
