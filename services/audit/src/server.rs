//! The log as an object: reading, verifying, waiting for records.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook as _;
use capnp::private::capability::ClientHook;
use distos_abi::{CapId, Fault, ObjectId, Rights, TenantId};
use distos_rpc::boot::Boot;
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::audit_capnp::{checkpoint, log, verification};
use distos_types::{SECRET_BYTES, kind};
use futures::future::LocalBoxFuture;

use crate::TRACE;
use crate::format::Checkpoint;
use crate::keeper::{Keeper, SharedStore, lock};
use crate::record::Body;
use crate::store::{OpenError, SEGMENT_BYTES, Store, Verification, verify_until};
use crate::walk::Damage;

/// Most entries in one answer.
const MAX_ENTRIES: u32 = 1_024;
/// An answer stops growing at this many bytes of records.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// How long draining waits for the last records.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Runs the audit service; blocks for the whole life of the vat.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, start)
}

async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    let dir = vat
        .data_dir()
        .ok_or_else(|| Fault::malformed("the image gives the audit service no directory"))?
        .to_owned();
    let (now_ms, at) = (vat.now_ms(), dir.clone());
    let opened = tokio::task::spawn_blocking(move || Store::open(&at, seed, now_ms, SEGMENT_BYTES))
        .await
        .map_err(Fault::internal)?;
    let state = match opened {
        Ok(store) => State::Open(Keeper::new(store)),
        Err(OpenError::Damaged(damage)) => {
            tracing::error!(%damage, "the audit log is damaged: nothing is added to it");
            let detail = format!("the audit log is damaged: {damage}");
            vat.report("audit-damage", TenantId::OPERATOR, CapId(0), detail);
            State::Damaged(damage)
        }
        Err(error @ OpenError::Newer(_)) => return Err(Fault::malformed(error.to_string())),
        Err(error) => return Err(Fault::unavailable(1_000, error.to_string())),
    };
    distos_noise::seal(&vat);
    tokio::task::spawn_local(distos_quic::attend(vat.clone()));
    let service = Rc::new(Audit { dir, state, verifying: tokio::sync::Mutex::new(()) });
    let keeping = service.clone();
    tokio::task::spawn_local(async move {
        if let State::Open(keeper) = &keeping.state {
            keeper.keep(async || vat.outbox().await, || vat.now_ms()).await;
        }
    });
    Ok(service)
}

fn seed(seed: &mut [u8; SECRET_BYTES]) -> io::Result<()> {
    getrandom::fill(seed).map_err(|e| io::Error::other(e.to_string()))
}

/// The service: one log.
struct Audit {
    dir: PathBuf,
    state: State,
    /// One verification at a time: each reads the whole log.
    verifying: tokio::sync::Mutex<()>,
}

enum State {
    /// Records come in.
    Open(Keeper),
    /// What is stored is not what was signed. It can be verified, to see where; nothing is added,
    /// so the outbox fills and the kernel refuses increases of authority (L2).
    Damaged(Damage),
}

impl Audit {
    fn keeper(&self) -> Result<&Keeper, Fault> {
        match &self.state {
            State::Open(keeper) => Ok(keeper),
            State::Damaged(damage) => Err(corrupt(damage)),
        }
    }

    async fn verify(&self, now_ms: u64) -> Result<Verification, Fault> {
        let keeper = match &self.state {
            State::Open(keeper) => keeper,
            State::Damaged(damage) => return Ok(Err(damage.clone()).into()),
        };
        let _alone = self.verifying.lock().await;
        let dir = self.dir.clone();
        let verified = keeper.with_store(move |store| {
            let head = newest(store);
            verify_until(&dir, head)?;
            let store = lock(store);
            store.check_ends()?;
            Ok(store.sign_again(head, now_ms))
        });
        Ok(verified.await?.into())
    }
}

/// The checkpoint that is handed out. The event is written while no batch can come.
fn newest(store: &SharedStore) -> Checkpoint {
    let store = lock(store);
    let checkpoint = store.checkpoint();
    tracing::debug!(target: TRACE, size = checkpoint.size, "checkpoint");
    checkpoint
}

fn corrupt(damage: &Damage) -> Fault {
    Fault::Corrupt(format!("the stored log is damaged: {damage}"))
}

impl Service for Audit {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if facet.kind() != kind::LOG || facet.object() != ObjectId::ROOT {
            return Err(Fault::not_found("the audit service serves one log"));
        }
        Ok(LogServer { audit: self, facet }.into_hook())
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(keeper) = self.keeper() {
                // The journal keeps what does not arrive in time.
                let _ = tokio::time::timeout(DRAIN_WAIT, keeper.flushed(0)).await;
            }
        })
    }
}

struct LogServer {
    audit: Rc<Audit>,
    facet: Facet,
}

impl LogServer {
    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<log::Client, _>(self).into_client_hook()
    }
}

impl Faceted for LogServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        LogServer { audit: self.audit.clone(), facet }.into_hook()
    }
}

serve_capability!(LogServer);

impl log::Server for LogServer {
    async fn entries(
        self: Rc<Self>,
        params: log::EntriesParams,
        mut results: log::EntriesResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (from, max) = params.get().map(|p| (p.get_from(), p.get_max().min(MAX_ENTRIES)))?;
        let keeper = self.audit.keeper().map_err(fail)?;
        let read = keeper.with_store(move |store| {
            let (size, range) = {
                let store = lock(store);
                let range = store.range(from, u64::from(max), MAX_ANSWER_BYTES);
                (store.checkpoint().size, range)
            };
            (size, range.read())
        });
        let (size, found) = read.await.map_err(fail)?;
        let found = found.map_err(|damage| fail(corrupt(&damage)))?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_size(size);
        let mut entries = reply.init_entries(found.len() as u32);
        for (n, stored) in found.iter().enumerate() {
            let mut entry = entries.reborrow().get(n as u32);
            entry.set_index(stored.index);
            entry.set_hash(&stored.hash);
            Body::new(&stored.body).read(|record| entry.set_record(record))?;
        }
        Ok(())
    }

    async fn verify(
        self: Rc<Self>,
        _: log::VerifyParams,
        mut results: log::VerifyResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let now_ms = self.facet.vat().now_ms();
        let verification = self.audit.verify(now_ms).await.map_err(fail)?;
        write_verification(&verification, self.facet.reply(&mut results).init_verification());
        Ok(())
    }

    async fn checkpoint(
        self: Rc<Self>,
        _: log::CheckpointParams,
        mut results: log::CheckpointResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let keeper = self.audit.keeper().map_err(fail)?;
        let newest = keeper.with_store(newest).await.map_err(fail)?;
        write_checkpoint(&newest, self.facet.reply(&mut results).init_checkpoint());
        Ok(())
    }

    async fn flush(
        self: Rc<Self>,
        params: log::FlushParams,
        mut results: log::FlushResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let up_to = params.get()?.get_up_to();
        self.audit.keeper().map_err(fail)?.flushed(up_to).await.map_err(fail)?;
        self.facet.reply(&mut results);
        Ok(())
    }
}

fn write_checkpoint(from: &Checkpoint, mut to: checkpoint::Builder<'_>) {
    to.set_size(from.size);
    to.set_head(&from.head);
    to.set_time_ms(from.time_ms);
    to.set_key(&from.key.0);
    to.set_signature(&from.signature);
}

fn write_verification(from: &Verification, mut to: verification::Builder<'_>) {
    to.set_ok(from.damage.is_none());
    if let Some(checkpoint) = &from.checkpoint {
        write_checkpoint(checkpoint, to.reborrow().init_checkpoint());
    }
    if let Some(damage) = &from.damage {
        to.set_bad_index(damage.index);
        to.set_bad_file(&damage.file);
        to.set_bad_offset(damage.offset);
        to.set_reason(&damage.reason);
    }
}
