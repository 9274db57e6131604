//! Whole sessions of Cap'n Proto RPC against a real vat, over a real socket.
//!
//! The vat is the runtime that every service runs on, with a small service of its own behind it
//! ([`vat`]) and a stand-in for the kernel ([`kernel`]), on threads of this process. An input is a
//! script ([`script`]): what a client sends, from valid calls to any bytes.

mod kernel;
mod script;
mod vat;

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use distos_abi::Fault;
use distos_client::Connection;
use distos_schemas::memory_capnp::region;

pub use script::seeds;
use vat::World;

/// How long the vat may take to see that a connection is closed, and to serve a good client. Far
/// more than it ever needs: beyond it, it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// One vat for all inputs: what one session breaks, the next client meets.
fn world() -> &'static Mutex<World> {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    WORLD.get_or_init(|| Mutex::new(World::start()))
}

/// Whatever a client sends, the vat lets go of it when it leaves, grants nothing that was not
/// restored with the holder's key (C4), and serves the next client.
pub fn session(bytes: &[u8]) {
    let mut world = world().lock().unwrap_or_else(PoisonError::into_inner);
    let before = world.seen();
    let stream = UnixStream::connect(world.socket()).unwrap();
    world.opened += 1;
    let restored = script::play(bytes, stream);
    let patient = Instant::now() + PATIENCE;
    while world.seen().parted < world.opened {
        assert!(Instant::now() < patient, "the vat does not let go of a closed connection");
        std::thread::sleep(Duration::from_micros(200));
    }
    let after = world.seen();
    if restored == 0 {
        assert_eq!(after.served, before.served, "a call was served without a capability");
        assert_eq!(after.redeemed, before.redeemed, "a chain was redeemed without its key");
    }
    assert!(after.redeemed - before.redeemed <= restored, "more was restored than was asked for");
    serve_a_good_client(&mut world);
}

fn serve_a_good_client(world: &mut World) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    world.opened += 1;
    let socket = world.socket().to_owned();
    let call = async move {
        let connection = Connection::open(&socket).await?;
        let region: region::Client =
            connection.restore(&kernel::chain(), &kernel::holder()).await?;
        let mut request = region.read_request();
        request.get().set_len(16);
        let reply = request.send().promise.await.map_err(|e| distos_rpc::fault_of(&e))?;
        let len = reply.get().and_then(|r| r.get_data()).map(|data| data.len());
        Ok::<_, Fault>(len.unwrap_or(0))
    };
    let served = local.block_on(&runtime, async { tokio::time::timeout(PATIENCE, call).await });
    match served {
        Ok(Ok(16)) => {}
        Ok(other) => panic!("the next client is not served: {other:?}"),
        Err(_) => panic!("the next client waits in vain"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a script of the corpus makes the vat do: chains redeemed, calls served.
    fn played(name: &str) -> (u64, u64) {
        let (_, script) = seeds().into_iter().find(|(seed, _)| seed == name).unwrap();
        let mut world = world().lock().unwrap_or_else(PoisonError::into_inner);
        let before = world.seen();
        let stream = UnixStream::connect(world.socket()).unwrap();
        world.opened += 1;
        script::play(&script, stream);
        let patient = Instant::now() + PATIENCE;
        while world.seen().parted < world.opened && Instant::now() < patient {
            std::thread::sleep(Duration::from_millis(1));
        }
        let after = world.seen();
        (after.redeemed - before.redeemed, after.served - before.served)
    }

    /// A script waits for each answer only so long, and leaves: on a machine that is busy with other things that may be
    /// before the vat has come to its last call.
    fn plays(name: &str, wanted: (u64, u64)) {
        let reached = (0..10).any(|_| played(name) == wanted);
        assert!(reached, "{name} reaches {:?}, and was to reach {wanted:?}", played(name));
    }

    #[test]
    fn the_seeds_reach_the_service_that_their_mutations_are_to_break() {
        plays("reads", (1, 1));
        plays("writes", (1, 2));
        plays("large", (1, 2));
        assert_eq!(played("attenuates").0, 1);
        // The read is sent before the revocation is answered, so it may still be served.
        assert_eq!(played("revokes").0, 1);
        assert_eq!(played("wrong-key"), (0, 0));
        assert_eq!(played("forged"), (0, 0));
    }
}
