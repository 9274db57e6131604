//! What a tenant at work notices while another one attacks: its p99, beside its own p99 while
//! nobody attacks, in windows that take turns.

use std::path::Path;
use std::time::Duration;

use distos_e2e::attack::{Attack, Field, Measured};
use distos_e2e::blue::Call;
use distos_e2e::{Node, single_image};

use super::{Failure, Outcome};
use crate::processors::{self, Stay};
use crate::report::Figure;

const WINDOW: Duration = Duration::from_secs(3);
const ROUNDS: usize = 7;
/// Names the one attack that is measured, if not all are.
const ONLY: &str = "DISTOS_ATTACK";

/// There are three parties, the node, blue and red's programs, and two processors. Whoever shares one
/// with somebody busy suffers from Linux and not from the node, so blue is with whomever the attack
/// leaves in peace: with the node while red's programs are busy with being started, and with red's
/// programs, which go behind it, while the node is busy with red.
pub(super) fn all(_: &Path) -> Outcome {
    let mut figures = Vec::new();
    let only = std::env::var(ONLY).ok();
    let wanted = |attack: &Attack| only.as_ref().is_none_or(|name| attack.name() == name);
    if Attack::ALL.iter().any(|attack| !attack.reaches_the_node() && wanted(attack)) {
        let with_servers = Stay::with_servers()?;
        let field = Field::new(Node::new(&single_image()));
        drop(with_servers);
        let _with_clients = Stay::with_clients()?;
        let attacks = Attack::ALL.into_iter().filter(|attack| !attack.reaches_the_node());
        for attack in attacks.filter(wanted) {
            figures.push(figure(&field.measure(attack, WINDOW, ROUNDS))?);
        }
    }
    let servers = processors::SERVERS.to_string();
    let node = || Node::under(&single_image(), Path::new("taskset"), &["-c", &servers]);
    let _with_clients = Stay::with_clients()?;
    {
        let field = Field::new(node());
        let attacks = Attack::ALL.into_iter().filter(|attack| attack.reaches_the_node());
        for attack in attacks.filter(wanted) {
            figures.push(figure(&field.measure(attack, WINDOW, ROUNDS))?);
        }
    }
    // Mounting a small disk is not permitted everywhere.
    if wanted(&Attack::FullDisk)
        && let Some(field) = Field::on_small_disk(node())
    {
        figures.push(figure(&field.measure(Attack::FullDisk, WINDOW, ROUNDS))?);
    }
    Ok(figures)
}

/// The ratios of all kinds of calls.
fn ratios(measured: &Measured) -> String {
    let ratio = |call: Call| Some(format!("{call} {:.2}", measured.ratio(call)?));
    Call::ALL.into_iter().filter_map(ratio).collect::<Vec<_>>().join(", ")
}

/// Of the kind of call that suffers most.
fn figure(measured: &Measured) -> Result<Figure, Failure> {
    let attack = measured.attack.name();
    if let Some(fault) = measured.faults.first() {
        return Err(format!("{attack}: the other tenant was told: {fault}").into());
    }
    if let Some(call) = Call::ALL.into_iter().find(|call| measured.unanswered(*call)) {
        return Err(format!("{attack}: no {call} of the other tenant's was answered").into());
    }
    let worst = Call::ALL.into_iter().max_by(|a, b| {
        let ratio = |call: &Call| measured.ratio(*call).unwrap_or(0.0);
        ratio(a).total_cmp(&ratio(b))
    });
    let worst = worst.ok_or("there are no calls")?;
    let (normal, attacked) = measured.p99(worst).ok_or("no call was answered")?;
    let ns = |time: Duration| time.as_secs_f64() * 1e9;
    let name = format!("another tenant's p99 during: {attack}");
    Ok(Figure::of("attack", name, ns(attacked), ns(normal))
        .beside("the same tenant's normal p99")
        .at_most(2.0)
        .noting(format!(
            "{worst}, which suffers most ({}); {} tries",
            ratios(measured),
            measured.tries
        )))
}
