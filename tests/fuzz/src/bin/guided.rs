//! The targets under libFuzzer, which learns from coverage; `make fuzz` builds and starts it.
//! `DISTOS_FUZZ_TARGET` names the target.
#![forbid(unsafe_code)]
#![no_main]
#![allow(clippy::unwrap_used, reason = "a tool for developers stops at the first failure")]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&'static distos_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("DISTOS_FUZZ_TARGET").unwrap_or_default();
    distos_fuzz::target(&name).unwrap_or_else(|| panic!("there is no target '{name}'"))
});

fuzz_target!(|input: &[u8]| {
    if let Err(what) = distos_fuzz::driver::run_once(*TARGET, input) {
        eprintln!("{}: {what}", TARGET.name);
        std::process::abort();
    }
});
