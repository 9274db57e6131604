//! Somebody at another node who holds capabilities by leases, in a process of its own: it says when each group of
//! them may not be used any more.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use capnp::capability::FromClientHook;
use distos_abi::Rights;
use distos_client::{Connection, Held};
use distos_identity::{Peers, Subject, TenantName};
use distos_quic::Streams;
use distos_rpc::transport::Bounds;
use distos_schemas::capability_capnp::capability;
use distos_sim::cluster::Cluster;
use distos_types::{Chain, HolderSecret};
use rustix::time::{ClockId, clock_gettime};

use crate::figures::Failure;
use crate::null_capnp::null;
use crate::remote::{self, HOME, TENANT};

/// The argument under which this binary is one.
pub const COMMAND: &str = "remote-lessee";
/// Groups over one connection: a door exports 4,096 capabilities at most.
const GROUPS: usize = 4;
/// Calls under way at one time: a door takes as many.
const IN_FLIGHT: usize = 32;

/// What a lessee is told.
pub struct Task {
    /// Where the chains of its groups are, by number.
    pub dir: PathBuf,
    /// The home.
    pub address: SocketAddr,
    /// Which of the lessees it is; its first group's number; how many it has; and how many capabilities below
    /// each.
    pub numbers: [usize; 4],
}

/// The key of a lessee, by its number.
pub fn key(number: usize) -> HolderSecret {
    HolderSecret::from_seed([20 + number as u8; 32])
}

/// Nanoseconds by a clock that all processes of this machine share.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The process. Says `ready`, and then `GROUP TIME` for each group whose leases have ended.
pub fn main(words: &[String]) -> ExitCode {
    remote::process(async {
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
        let address = words.get(1).ok_or("no address")?.parse()?;
        let numbers = [number(2), number(3), number(4), number(5)];
        hold(Task { dir: words.first().ok_or("no directory")?.into(), address, numbers }).await
    })
}

/// The file of a group's chain.
pub fn chain(dir: &Path, group: usize) -> PathBuf {
    dir.join(format!("group-{group}"))
}

async fn hold(task: Task) -> Result<(), Failure> {
    let [number, first, groups, leaves] = task.numbers;
    let key = key(number);
    let cluster = Cluster::new("bench");
    let own = Subject::Agent { tenant: TenantName::new(TENANT)?, agent: key.key() };
    let peers = Peers { nodes: [HOME].into(), ..Peers::default() };
    let (endpoint, _arrivals) = cluster.endpoint(cluster.svid(own, 70 + number as u8), peers);
    let (mut connections, mut waiting) = (Vec::new(), tokio::task::JoinSet::new());
    for group in first..first + groups {
        if (group - first).is_multiple_of(GROUPS) {
            let link = endpoint.connect(task.address, &cluster.id(remote::home()?)).await?;
            let leases = Streams::of(link.connection().clone()).leases();
            let connection = Connection::over(link.start(None, Bounds::EDGE));
            connections.push(connection.lending(leases));
        }
        let connection = connections.last().ok_or("no connection")?;
        let chain = Chain::decode(&std::fs::read(chain(&task.dir, group))?)?;
        let parent: null::Client = connection.restore(&chain, &key).await?;
        let mut held = Vec::with_capacity(leaves);
        for from in (0..leaves).step_by(IN_FLIGHT) {
            let some = (from..leaves.min(from + IN_FLIGHT)).map(|_| leaf(connection, &parent));
            held.extend(futures::future::try_join_all(some).await?);
        }
        waiting.spawn_local(async move {
            // One after the other: what the first waits for all wait for, or else their own terms.
            for (lease, _) in &held {
                lease.lost().await;
            }
            // Giving them back is other work, which the next revocation would find under way.
            (group, now_ns(), (held, parent))
        });
    }
    println!("ready");
    let mut kept = Vec::new();
    while let Some(ended) = waiting.join_next().await {
        let (group, ended_ns, held) = ended?;
        kept.push(held);
        println!("{group} {ended_ns}");
    }
    // The home has so many places for each, and is to know that these are free.
    drop(connections);
    endpoint.leave().await;
    Ok(())
}

/// A capability below this one, and a lease on it.
async fn leaf(
    connection: &Connection,
    parent: &null::Client,
) -> Result<(Held, capability::Client), Failure> {
    let parent: capability::Client = parent.clone().cast_to();
    let mut request = parent.attenuate_request();
    request.get().set_rights(Rights::READ.0);
    let made = request.send().promise.await?;
    let cap = made.get()?.get_cap()?;
    Ok((connection.hold(&cap).await?, cap))
}
