//! How long somebody at another node may still use what was revoked: leases on 10, 1,000 and 100,000 capabilities,
//! and when nothing of the revocation is heard.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capnp::capability::FromClientHook;
use distos_abi::{Authority, Rights};
use distos_schemas::capability_capnp::capability;
use distos_types::{CapFile, Chain, HolderSecret};

use super::{Failure, Outcome};
use crate::lessee::{self, now_ns};
use crate::node;
use crate::null_capnp::null;
use crate::peers::Process;
use crate::remote::Remote;
use crate::report::{Figure, time};
use crate::sample::quantile;

/// Revocations of which the slowest but one is reported.
const REVOCATIONS: usize = 100;
/// Revocations of which nothing is heard, in three runs.
const LOST: usize = 10;
const RUNS: usize = 3;
/// The published bound.
const BOUND: Duration = Duration::from_millis(5100);
const LESSEES: usize = 2;
/// Between revocations: each finds the nodes at rest.
const REST: Duration = Duration::from_millis(20);

pub(super) fn all(_: &Path) -> Outcome {
    node::on_one_thread(measure())
}

async fn measure() -> Outcome {
    let dir = tempfile::tempdir()?;
    let remote = Remote::with_slots(dir.path(), 400_000)?;
    let (_connection, operator) = remote.connect().await?;
    let world = World { dir: dir.path(), operator, next: std::cell::Cell::new(0) };
    let mut few = Vec::new();
    for _ in 0..REVOCATIONS / 10 {
        few.extend(world.revoked(remote.address(), 10, 1, None).await?);
    }
    let some = world.revoked(remote.address(), REVOCATIONS, 10, None).await?;
    let many = world.revoked(remote.address(), REVOCATIONS, 1000, None).await?;
    let mut lost = Vec::new();
    for _ in 0..RUNS {
        let relay = Relay::start(remote.address())?;
        lost.extend(world.revoked(relay.address, LOST, 10, Some(&relay)).await?);
    }
    let p99 = |times: &[u64]| quantile(&mut times.to_vec(), 0.99);
    let median = |times: &[u64]| quantile(&mut times.to_vec(), 0.5);
    let flat = |held: &str, times: &[u64]| {
        let name = format!("revoke, to the last use by a lease at another node, p99; {held} held");
        let medians = median(times) / median(&few);
        Figure::of("lease", name, p99(times), p99(&few))
            .beside("the same with 10 held, one below each that is revoked")
            .at_most(2.0)
            .noting(format!(
                "of the medians: {medians:.2}; nine in ten within {}",
                time(quantile(&mut times.to_vec(), 0.9))
            ))
    };
    let longest = lost.iter().copied().max().unwrap_or(u64::MAX) as f64;
    Ok(vec![
        flat("1,000 capabilities, 10 below each that is revoked,", &some),
        flat("100,000 capabilities, 1,000 below each that is revoked,", &many),
        Figure::of(
            "lease",
            "revoke, to the last use by a lease at another node that hears nothing; longest",
            longest,
            BOUND.as_nanos() as f64,
        )
        .beside("the published bound, Term + Skew")
        .at_most(1.0)
        .noting(format!("the longest of {} revocations, from their beginning", lost.len())),
    ])
}

/// The home's operator, who gives and takes back.
struct World<'a> {
    dir: &'a Path,
    operator: null::Client,
    next: std::cell::Cell<usize>,
}

impl World<'_> {
    /// Two lessees hold `groups` times `leaves` capabilities; each group is revoked, one after the other. From the
    /// command to the moment in which the lessee uses none of them any more, in nanoseconds.
    async fn revoked(
        &self,
        home: SocketAddr,
        groups: usize,
        leaves: usize,
        cut: Option<&Relay>,
    ) -> Result<Vec<u64>, Failure> {
        let first = self.next.replace(self.next.get() + groups);
        let each = groups / LESSEES;
        let (mut chains, mut lessees) = (Vec::new(), Vec::new());
        for number in 0..LESSEES {
            let from = first + number * each;
            for group in from..from + each {
                let chain = self.delegated(&lessee::key(number), group)?;
                std::fs::write(lessee::chain(self.dir, group), chain.encode())?;
                chains.push((number, group, chain));
            }
            lessees.push(self.lessee(home, [number, from, each, leaves])?);
        }
        for lessee in &mut lessees {
            let said = lessee.said().await?;
            if said != "ready" {
                return Err(format!("a lessee says {said}").into());
            }
        }
        if let Some(relay) = cut {
            relay.is_cut.store(true, Ordering::Relaxed);
        }
        // What was recorded before without waiting for the disk reaches it now, and not while it is measured.
        rustix::fs::sync();
        let mut begun = Vec::new();
        // One of each in turn.
        let (one, other) = chains.split_at(each);
        for (number, group, chain) in one.iter().zip(other).flat_map(|(one, other)| [one, other]) {
            begun.push((*number, *group, now_ns()));
            let mut request =
                self.operator.clone().cast_to::<capability::Client>().revoke_link_request();
            request.get().set_link(&chain.links().last().ok_or("no link")?.hash.0);
            request.get().set_expires_ms(u64::MAX);
            request.send().promise.await?;
            tokio::time::sleep(REST).await;
        }
        let mut times = Vec::new();
        for (number, lessee) in lessees.iter_mut().enumerate() {
            for _ in 0..each {
                let said = lessee.said().await?;
                let (group, ended) = said.split_once(' ').ok_or("a lessee says something else")?;
                let (group, ended): (usize, u64) = (group.parse()?, ended.parse()?);
                let began = begun.iter().find(|(of, known, _)| *of == number && *known == group);
                let began = began.ok_or("nobody revoked it")?.2;
                times.push(ended.checked_sub(began).ok_or("it ended before it was revoked")?);
            }
            // It takes its leave.
            let end = lessee.said.recv().await;
            if let Some(said) = end {
                return Err(format!("a lessee says {said}").into());
            }
        }
        Ok(times)
    }

    fn delegated(&self, to: &HolderSecret, group: usize) -> Result<Chain, Failure> {
        let read = |name: &str| std::fs::read_to_string(self.dir.join("operator").join(name));
        let owner = HolderSecret::from_file_text(&read("operator.key")?)?;
        let file = CapFile::parse(&read("operator.cap")?)?;
        let own = &file.find("null").ok_or("the operator has no such capability")?.chain;
        let wanted = Authority { rights: Rights::READ, ..Authority::FULL };
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&group.to_le_bytes());
        Ok(own.delegate(&owner, to.key(), wanted, nonce)?)
    }

    fn lessee(&self, home: SocketAddr, numbers: [usize; 4]) -> Result<Lessee, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(lessee::COMMAND).arg(self.dir).arg(home.to_string());
        command.args(numbers.map(|number| number.to_string())).stdout(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let said = process.0.stdout.take().ok_or("a lessee without standard output")?;
        // The connection to the home has to be kept up meanwhile.
        let (lines, said_lines) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Lessee { _process: process, said: said_lines })
    }
}

struct Lessee {
    _process: Process,
    said: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Lessee {
    async fn said(&mut self) -> Result<String, Failure> {
        Ok(self.said.recv().await.ok_or("a lessee has ended")?)
    }
}

/// A network between lessees and home that can be cut: then nothing passes, either way.
struct Relay {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    /// Its threads end with the program: there are few.
    fn start(home: SocketAddr) -> Result<Relay, Failure> {
        let front = UdpSocket::bind("127.0.0.1:0")?;
        let (address, is_cut) = (front.local_addr()?, Arc::new(AtomicBool::new(false)));
        let cut = is_cut.clone();
        std::thread::spawn(move || relay(&front, home, &cut));
        Ok(Relay { address, is_cut })
    }
}

/// Each lessee has a socket of its own towards the home.
fn relay(front: &UdpSocket, home: SocketAddr, is_cut: &Arc<AtomicBool>) {
    let mut behind: Vec<(SocketAddr, UdpSocket)> = Vec::new();
    let mut datagram = [0; 65_536];
    while let Ok((len, from)) = front.recv_from(&mut datagram) {
        if !behind.iter().any(|(known, _)| *known == from) {
            let Ok(socket) = UdpSocket::bind("127.0.0.1:0") else { return };
            let (Ok(back), Ok(front)) = (socket.try_clone(), front.try_clone()) else { return };
            let cut = is_cut.clone();
            std::thread::spawn(move || {
                let mut datagram = [0; 65_536];
                while let Ok(len) = back.recv(&mut datagram) {
                    if !cut.load(Ordering::Relaxed) {
                        let _ = front.send_to(&datagram[..len], from);
                    }
                }
            });
            behind.push((from, socket));
        }
        let socket = behind.iter().find(|(known, _)| *known == from).map(|(_, socket)| socket);
        if let Some(socket) = socket.filter(|_| !is_cut.load(Ordering::Relaxed)) {
            // A datagram may be lost.
            let _ = socket.send_to(&datagram[..len], home);
        }
    }
}
