//! Image files.

use std::path::Path;

use distos_host::plan::Plan;
use distos_node::image::{ImageErrors, Machine, parse};

use super::seed;

fn read(text: &str) -> Result<Plan, ImageErrors> {
    let machine = Machine {
        builtins: &distos_node::vat::PROGRAMS,
        executable: &|path| path.as_os_str().len() % 2 == 0,
        exists: &|_| true,
    };
    parse(text, Path::new("node.toml"), Path::new("/var/lib/distos"), &machine)
}

const SINGLE: &str = include_str!("../../../../images/single.toml");
const SMALL: &str = r#"
image = { name = "t", slots = 2048 }
grant = [
  { to = "scheduler", name = "memory", of = "memory/regions", rights = ["read"] },
  { to = "scheduler", kernel = "spawn executor" },
]
[operator]
regions = { of = "memory/regions", rights = ["read"] }
[vat.scheduler]
program = "scheduler"
serves = ["queue"]
[vat.memory]
program = "memory"
serves = ["regions"]
limits = { memory_bytes = 1000000, open_files = 10, threads = 3 }
params = { a = "b" }
[template.executor]
program = "executor"
serves = ["executor"]
"#;

pub(super) fn plan() -> Plan {
    read(SINGLE).or_else(|_| read(SMALL)).unwrap()
}

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("single.toml", SINGLE), seed("small.toml", SMALL)]
}

/// Every fault has a line of the file, and what is accepted starts what its plan says: a vat that
/// an edge or a grant names is there.
pub(super) fn image(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match read(&text) {
        Ok(plan) => {
            let is_there =
                |name: &str| plan.vats.iter().chain(&plan.templates).any(|vat| vat.name == name);
            for edge in &plan.edges {
                assert!(is_there(&edge.holder) && is_there(&edge.home), "{edge:?}");
            }
            assert!(plan.operator.iter().all(|grant| is_there(&grant.vat)));
            let json = serde_json::to_vec(&plan).unwrap();
            let again: Plan = serde_json::from_slice(&json).unwrap();
            assert_eq!(serde_json::to_vec(&again).unwrap(), json);
        }
        Err(errors) => {
            let last = text.lines().count() + 1;
            assert!(!errors.0.is_empty(), "refused without a reason");
            for error in &errors.0 {
                assert!((1..=last).contains(&error.line), "{error}: there is no such line");
                assert!(!error.what.is_empty(), "{error}");
            }
        }
    }
}
