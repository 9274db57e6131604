//! Stands between a vat and its kernel, and holds one message where a test wants it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_capnp::{message, return_};
use distos_host::spawn::SpawnSpec;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::Spawn;
use crate::held::{Gate, Point};

/// Calls to the kernel that an operation makes and that can be held: `mint` to `persist` of
/// `kernel.capnp`. What ends authority is never held, nor what only reports.
const HELD: std::ops::RangeInclusive<u16> = 1..=6;

/// Starts vats as `spawn` does, with the connection between the vat called `name` and the kernel
/// going through `gate`.
pub fn through(name: &'static str, gate: Gate, spawn: Spawn) -> Spawn {
    Box::new(move |mut spec: SpawnSpec| {
        if spec.manifest.vat == name {
            let (ours, vats) =
                socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            let kernel = stream(std::mem::replace(&mut spec.fds.kernel, vats))?;
            relay(kernel, stream(ours)?, gate.clone());
        }
        spawn(spec)
    })
}

fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The numbers of calls that are waiting for their answers, by question id.
type Numbered = RefCell<HashMap<u32, u32>>;

fn relay(kernel: UnixStream, vat: UnixStream, gate: Gate) {
    let (from_kernel, to_kernel) = kernel.into_split();
    let (from_vat, to_vat) = vat.into_split();
    let numbered = Rc::new(Numbered::default());
    let (calls, asked) = (numbered.clone(), gate.clone());
    tokio::task::spawn_local(pump(from_vat, to_kernel, asked, move |bytes, gate| {
        let Some((question, method)) = call_of(bytes) else { return false };
        if !HELD.contains(&method) || !gate.counts() {
            calls.borrow_mut().remove(&question);
            return false;
        }
        let number = gate.next_call();
        calls.borrow_mut().insert(question, number);
        gate.holds(Point::Asked(number))
    }));
    tokio::task::spawn_local(pump(from_kernel, to_vat, gate, move |bytes, gate| {
        let number = answer_of(bytes).and_then(|q| numbered.borrow_mut().remove(&q));
        number.is_some_and(|number| gate.holds(Point::Answered(number)))
    }));
}

/// Forwards messages in one direction. One that is held is forwarded after it is released; those
/// behind it overtake it, for the protocol lets answers come in any order.
async fn pump(
    mut from: OwnedReadHalf,
    to: OwnedWriteHalf,
    gate: Gate,
    is_held: impl Fn(&[u8], &Gate) -> bool,
) {
    let to = Rc::new(tokio::sync::Mutex::new(to));
    while let Ok(bytes) = read_message(&mut from).await {
        if is_held(&bytes, &gate) {
            let (gate, to) = (gate.clone(), to.clone());
            tokio::task::spawn_local(async move {
                gate.stop().await;
                let _ = to.lock().await.write_all(&bytes).await;
            });
        } else if to.lock().await.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.lock().await.shutdown().await;
}

/// One message with its frame table. Both ends are this node's own.
async fn read_message(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    from.read_exact(&mut bytes).await?;
    let word = |bytes: &[u8], at: usize| {
        let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
        u32::from_le_bytes(part.unwrap_or_default()) as usize
    };
    let segments = word(&bytes, 0) + 1;
    let table = (4 + 4 * segments).next_multiple_of(8);
    bytes.resize(table, 0);
    from.read_exact(&mut bytes[4..]).await?;
    let words: usize = (0..segments).map(|s| word(&bytes, 4 + 4 * s)).sum();
    bytes.resize(table + 8 * words, 0);
    from.read_exact(&mut bytes[table..]).await?;
    Ok(bytes)
}

fn call_of(mut bytes: &[u8]) -> Option<(u32, u16)> {
    let read = capnp::serialize::read_message_from_flat_slice(&mut bytes, ReaderOptions::new());
    let read = read.ok()?;
    match read.get_root::<message::Reader<'_>>().ok()?.which().ok()? {
        message::Call(call) => {
            let call = call.ok()?;
            Some((call.get_question_id(), call.get_method_id()))
        }
        _ => None,
    }
}

fn answer_of(mut bytes: &[u8]) -> Option<u32> {
    let read = capnp::serialize::read_message_from_flat_slice(&mut bytes, ReaderOptions::new());
    let read = read.ok()?;
    match read.get_root::<message::Reader<'_>>().ok()?.which().ok()? {
        message::Return(answer) => {
            let answer: return_::Reader<'_> = answer.ok()?;
            Some(answer.get_answer_id())
        }
        _ => None,
    }
}
