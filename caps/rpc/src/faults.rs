//! Faults and authorities as they travel in Cap'n Proto messages.

use distos_abi::{Authority, ByteRange, Caveats, Fault, Rights};
use distos_schemas::capability_capnp::caveats;

/// The exception that carries a fault. Its kind tells clients that know nothing of DistOS whether
/// trying again can help.
pub fn fail(fault: Fault) -> capnp::Error {
    let reason = fault.to_wire();
    match fault {
        Fault::Unavailable { .. } | Fault::OverQuota { .. } => capnp::Error::overloaded(reason),
        _ => capnp::Error::failed(reason),
    }
}

/// The fault that an exception carries. An exception that is no fault of ours becomes
/// [`Fault::Unavailable`] if the connection was lost, else [`Fault::Internal`].
pub fn fault_of(error: &capnp::Error) -> Fault {
    if let Some(fault) = Fault::from_wire(&error.extra) {
        return fault;
    }
    match error.kind {
        capnp::ErrorKind::Disconnected | capnp::ErrorKind::PrematureEndOfFile => {
            Fault::unavailable(200, "the connection to the service was lost")
        }
        capnp::ErrorKind::Overloaded => Fault::unavailable(200, "the service is overloaded"),
        _ => Fault::internal(error),
    }
}

/// Reads caveats.
pub fn caveats_of(caveats: caveats::Reader<'_>) -> Caveats {
    Caveats {
        expires_ms: caveats.get_expires_ms(),
        range: ByteRange { start: caveats.get_range_start(), end: caveats.get_range_end() },
        quota_bytes: caveats.get_quota_bytes(),
        quota_tasks: caveats.get_quota_tasks(),
        rate_per_s: caveats.get_rate_per_s(),
        end_to_end: caveats.get_end_to_end(),
    }
}

/// Reads an authority.
pub fn authority_of(rights: u64, caveats: caveats::Reader<'_>) -> Authority {
    Authority { rights: Rights(rights), caveats: caveats_of(caveats) }
}

/// Writes caveats.
pub fn write_caveats(caveats: Caveats, mut builder: caveats::Builder<'_>) {
    builder.set_expires_ms(caveats.expires_ms);
    builder.set_range_start(caveats.range.start);
    builder.set_range_end(caveats.range.end);
    builder.set_quota_bytes(caveats.quota_bytes);
    builder.set_quota_tasks(caveats.quota_tasks);
    builder.set_rate_per_s(caveats.rate_per_s);
    builder.set_end_to_end(caveats.end_to_end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_keeps_its_code_through_an_exception() {
        let fault = Fault::denied(Rights::WRITE);
        assert_eq!(fault_of(&fail(fault.clone())), fault);
        assert_eq!(fault_of(&capnp::Error::disconnected("x".into())).code(), 17);
        assert_eq!(fault_of(&capnp::Error::failed("x".into())).code(), 24);
    }
}
