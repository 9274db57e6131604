//! Whatever red does, each attempt ends with a clear fault, the node stays up, and blue, at work
//! meanwhile, sees no error and is not starved.
//!
//! How much longer blue's calls take is a figure of the benchmarks. Here stands only what no
//! machine is slow enough for.

use std::time::Duration;

use distos_e2e::attack::{Attack, Field, Measured};
use distos_e2e::blue::Call;
use distos_e2e::{Node, single_image};

/// How long blue works in each turn.
const WINDOW: Duration = Duration::from_millis(600);
const ROUNDS: usize = 2;
/// A machine that is busy with something else is busy once, and not each time.
const ATTEMPTS: usize = 3;

fn withstands(attacks: &[Attack]) {
    let field = Field::new(Node::new(&single_image()));
    for attack in attacks {
        let name = attack.name();
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let measured = field.measure(*attack, WINDOW, ROUNDS);
            assert!(measured.faults.is_empty(), "{name}: blue sees {:#?}", measured.faults);
            assert!(measured.unclear.is_empty(), "{name}: red is told {:#?}", measured.unclear);
            print_figures(&measured);
            assert!(measured.refused > 0, "{name}: none of {} was refused", measured.tries);
            last = measured.starved();
            if last.is_none() {
                break;
            }
        }
        assert!(last.is_none(), "{name}: blue is starved: {}", last.unwrap_or_default());
    }
    let status = field.node.json(&["status"]);
    for vat in status["vats"].as_array().expect("vats") {
        assert_eq!(vat["restarts"], 0, "{} ended: {status}", vat["name"]);
    }
    field.node.ok(&["region", "get", "input", "--as", "red.cap"]);
    field.node.ok(&["region", "get", "work", "--as", "blue.cap", "--len", "1"]);
    field.node.ok(&["audit", "verify"]);
}

/// For whoever looks at the test's output.
#[allow(clippy::print_stdout)]
fn print_figures(measured: &Measured) {
    print!("{:20} {} of {}", measured.attack.name(), measured.refused, measured.tries);
    for call in Call::ALL {
        if let (Some((normal, attacked)), Some(ratio)) = (measured.p99(call), measured.ratio(call))
        {
            let (normal, attacked) = (normal.as_micros(), attacked.as_micros());
            print!("  {call} {normal} → {attacked} µs ({ratio:.1}x)");
        }
    }
    println!();
}

#[test]
fn a_tenant_at_work_does_not_suffer_from_attacks_on_the_sockets() {
    withstands(&[
        Attack::Noise,
        Attack::Malformed,
        Attack::HugeLength,
        Attack::EndlessMessage,
        Attack::EndlessCalls,
        Attack::Connections,
    ]);
}

#[test]
fn a_tenant_at_work_does_not_suffer_from_anothers_broken_files() {
    withstands(&[Attack::SecondUp, Attack::NewerDirectory, Attack::BrokenCapability]);
}

#[test]
fn a_tenant_at_work_does_not_suffer_from_anothers_bad_programs() {
    withstands(&[Attack::NotWasm, Attack::Loop, Attack::Allocate, Attack::Print]);
}
