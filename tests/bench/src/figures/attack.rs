//! What a tenant at work notices while another one attacks: its p99, beside its own p99 while
//! nobody attacks, in windows that take turns.

use std::path::Path;
use std::time::Duration;

use distos_e2e::attack::{Attack, Field, Measured, Place};
use distos_e2e::blue::Call;

use super::{Failure, Outcome};
use crate::processors::Apart;
use crate::report::Figure;

const WINDOW: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

pub(super) fn all(_: &Path) -> Outcome {
    // The node and blue inherit it; red gets a processor of its own.
    let apart = Apart::stay()?;
    let mut field = Field::new();
    field.red = place(&apart);
    let mut figures = Vec::new();
    for attack in Attack::ALL {
        figures.push(figure(&field.measure(attack, WINDOW, ROUNDS))?);
    }
    drop(field);
    // Mounting a small disk is not permitted everywhere.
    if let Some(mut field) = Field::on_small_disk() {
        field.red = place(&apart);
        figures.push(figure(&field.measure(Attack::FullDisk, WINDOW, ROUNDS))?);
    }
    Ok(figures)
}

fn place(apart: &Apart) -> Place {
    apart.other().map_or(Place::Behind, Place::Processor)
}

/// Of the kind of call that suffers most.
fn figure(measured: &Measured) -> Result<Figure, Failure> {
    let attack = measured.attack.name();
    if let Some(fault) = measured.faults.first() {
        return Err(format!("{attack}: the other tenant was told: {fault}").into());
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
        .noting(format!("{worst}, which suffers most; {} tries of the attacker's", measured.tries)))
}
