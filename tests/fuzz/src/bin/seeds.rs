//! Writes the corpora: small inputs that the real encoders make. `cargo run -p distos-fuzz --bin
//! seeds` after a format has changed; inputs of the old format may stay, under other names.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a tool for developers stops at the first failure")]

fn main() {
    for target in distos_fuzz::TARGETS {
        let folder = distos_fuzz::folder("corpus", target.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in (target.seeds)() {
            assert!(bytes.len() <= target.max_bytes, "{}: {name} is too long", target.name);
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}
