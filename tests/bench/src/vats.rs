//! The vats of a benchmark's node: this binary, started by a real kernel in a real sandbox. What
//! they serve stands in null.capnp.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{Authority, ByteRange, Fault, ObjectId, Rights};
use distos_rpc::boot::Boot;
use distos_rpc::{Facet, Faceted, Service, Vat, fail, fault_of, serve_capability};
use distos_types::kind;
use futures::future::LocalBoxFuture;
use tokio::net::UnixListener;

use crate::null_capnp::{null, tree};
use crate::peers::bare;

/// The argument under which a kernel starts a vat.
pub const COMMAND: &str = "vat";
/// The vats, by the names that an image gives them.
pub const NULL: &str = "null";
/// Bare Cap'n Proto in the same sandbox.
pub const BARE: &str = "bare";
/// Derivations by the million.
pub const TREE: &str = "tree";

const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// Derivations on their way to the kernel at one time.
const BATCH: u32 = 1024;
/// How long an ended descendant may be found alive. A revocation is much faster.
const REFUSAL: Duration = Duration::from_secs(30);

/// Locks this process down and serves. To be called first thing, by the only thread.
pub fn main() -> ExitCode {
    match distos_host::sandbox::enter() {
        Ok(boot) => {
            let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
            log.with_max_level(tracing_subscriber::filter::LevelFilter::ERROR).init();
            serve(boot)
        }
        Err(fault) => {
            eprintln!("distos-bench vat: {fault}");
            ExitCode::from(fault.code())
        }
    }
}

fn serve(mut boot: Boot) -> ExitCode {
    match boot.manifest.vat.as_str() {
        BARE => {
            let listener = boot.manifest.listen_fd.take().and_then(|fd| boot.fds.remove(&fd));
            distos_rpc::run(boot, |_| async move {
                let listener = listener.ok_or_else(|| Fault::malformed("listen = true"))?;
                let listener = std::os::unix::net::UnixListener::from(listener);
                listener.set_nonblocking(true).map_err(Fault::internal)?;
                let listener = UnixListener::from_std(listener).map_err(Fault::internal)?;
                tokio::task::spawn_local(bare::serve(listener));
                Ok(service())
            })
        }
        _ => distos_rpc::run(boot, |_| async { Ok(service()) }),
    }
}

/// What a vat of the benchmark serves.
pub fn service() -> Rc<dyn Service> {
    Rc::new(Bench)
}

struct Bench;

impl Service for Bench {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        match facet.kind() {
            kind::REGIONS => Ok(Null { facet }.hook()),
            kind::QUEUE => Ok(Tree { facet, last: RefCell::default() }.hook()),
            _ => Err(Fault::not_found("the benchmark serves no such object")),
        }
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

struct Null {
    facet: Facet,
}

impl Null {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<null::Client, _>(self).into_client_hook()
    }
}

impl Faceted for Null {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        Null { facet }.hook()
    }
}

serve_capability!(Null);

impl null::Server for Null {
    async fn null(
        self: Rc<Self>,
        _: null::NullParams,
        mut results: null::NullResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        self.facet.commit(Rights::READ, NO_BYTES, || ()).map_err(fail)?;
        self.facet.reply(&mut results);
        Ok(())
    }
}

/// A subtree that `grow` made. It is never let go: giving back a million capabilities one by one
/// would be other work than what is measured.
struct Subtree {
    top: Facet,
    below: Vec<Facet>,
}

struct Tree {
    facet: Facet,
    last: RefCell<Option<Subtree>>,
}

impl Tree {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<tree::Client, _>(self).into_client_hook()
    }

    fn vat(&self) -> &Vat {
        self.facet.vat()
    }

    async fn grow_to(&self, descendants: u32) -> Result<(), Fault> {
        self.facet.check(Rights::CREATE)?;
        let outbox = self.vat().outbox().await?;
        let authority = self.facet.authority();
        let top = self.facet.attenuate(authority).await?;
        let mut below = Vec::with_capacity(descendants as usize);
        while (below.len() as u32) < descendants {
            let batch = BATCH.min(descendants - below.len() as u32);
            let derived = (0..batch).map(|_| top.attenuate(authority));
            below.extend(futures::future::try_join_all(derived).await?);
            // What an audit service does: without it the journal fills.
            let mut taken = outbox.ack_request();
            taken.get().set_up_to(u64::MAX);
            taken.send().promise.await.map_err(|e| fault_of(&e))?;
        }
        *self.last.borrow_mut() = Some(Subtree { top, below });
        Ok(())
    }

    async fn fell_last(&self) -> Result<Fell, Fault> {
        let subtree = self.last.borrow_mut().take();
        let Subtree { top, below } = subtree.ok_or_else(|| Fault::not_found("no subtree"))?;
        let leaf = below.last().ok_or_else(|| Fault::not_found("no descendant"))?;
        leaf.check(Rights::NONE)?;
        let started = Instant::now();
        let revoked = async {
            let revoked = top.revoke().await?;
            Ok::<_, Fault>((revoked, started.elapsed()))
        };
        let refused = async {
            loop {
                // What a call does that comes in now.
                if leaf.check(Rights::NONE).is_err() {
                    return started.elapsed();
                }
                if started.elapsed() > REFUSAL {
                    return Duration::MAX;
                }
                tokio::task::yield_now().await;
            }
        };
        let (revoked, refused) = futures::join!(revoked, refused);
        let (revoked, durable) = revoked?;
        std::mem::forget((top, below));
        Ok(Fell { durable, refused, descendants: revoked.descendants })
    }

    /// A durable capability to an object that nobody had.
    async fn mint_one(&self, object: ObjectId) -> Result<Duration, Fault> {
        let started = Instant::now();
        let authority = Authority { rights: Rights::READ, ..self.facet.authority() };
        self.facet.mint(kind::JOB, object, authority).await?;
        Ok(started.elapsed())
    }
}

struct Fell {
    durable: Duration,
    refused: Duration,
    descendants: u64,
}

impl Faceted for Tree {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        Tree { facet, last: RefCell::default() }.hook()
    }
}

serve_capability!(Tree);

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl tree::Server for Tree {
    async fn grow(
        self: Rc<Self>,
        params: tree::GrowParams,
        mut results: tree::GrowResults,
    ) -> Result<(), capnp::Error> {
        let descendants = params.get()?.get_descendants();
        self.grow_to(descendants).await.map_err(fail)?;
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn fell(
        self: Rc<Self>,
        _: tree::FellParams,
        mut results: tree::FellResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CREATE).map_err(fail)?;
        let fell = self.fell_last().await.map_err(fail)?;
        let mut ended = self.facet.reply(&mut results).init_ended();
        ended.set_durable(nanos(fell.durable));
        ended.set_refused(nanos(fell.refused));
        ended.set_descendants(fell.descendants);
        Ok(())
    }

    async fn mint(
        self: Rc<Self>,
        params: tree::MintParams,
        mut results: tree::MintResults,
    ) -> Result<(), capnp::Error> {
        let count = params.get()?.get_count();
        self.facet.check(Rights::CREATE).map_err(fail)?;
        let mut took = Vec::new();
        for _ in 0..count {
            let object = ObjectId(NEXT.with(|next| next.replace(next.get() + 1)));
            took.push(nanos(self.mint_one(object).await.map_err(fail)?));
        }
        let mut list = self.facet.reply(&mut results).init_nanos(count);
        for (index, time) in (0..count).zip(took) {
            list.set(index, time);
        }
        Ok(())
    }
}

thread_local! {
    /// Objects of this vat are numbered from 1 on.
    static NEXT: std::cell::Cell<u64> = const { std::cell::Cell::new(1) };
}
