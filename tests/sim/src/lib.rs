//! A whole node in one process. The kernel and the services are the ones that production runs;
//! only what starts a vat differs: a thread ([`threads`]) or a task of the calling thread
//! ([`tasks`]) instead of a sandboxed process.
//!
//! **What it does not do:** it confines nothing. Vats share one address space, one uid and all
//! files, and [`Protection`] lists say so. No program that people run links this crate, so there is
//! no image that could ask for it.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod far;
pub mod fleet;
pub mod held;
pub mod random;
pub mod relay;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::Fault;
use distos_client::Connection;
use distos_host::events::Event;
use distos_host::plan::Plan;
use distos_host::spawn::{Exit, Run, SpawnSpec};
use distos_host::start::{self, Host};
use distos_node::operator;
use distos_rpc::boot::{Boot, Protection};
use distos_types::{CapFile, HolderSecret};
use futures::future::LocalBoxFuture;
use rustix::net::{Shutdown, shutdown};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

/// How the vats of a node are started.
pub type Spawn = Box<dyn Fn(SpawnSpec) -> io::Result<Rc<dyn Run>>>;

/// The life of one vat.
pub type Life = Pin<Box<dyn Future<Output = Result<(), Fault>>>>;

/// How long a node may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running node. Dropping it ends it at once.
pub struct Node {
    dir: PathBuf,
    stop: mpsc::Sender<()>,
    ended: oneshot::Receiver<Result<(), Fault>>,
    _end: oneshot::Sender<()>,
}

impl Node {
    /// Starts a node on the calling thread's `LocalSet` and waits until it is ready.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn boot(plan: Plan, spawn: Spawn) -> Result<Node, Fault> {
        let (stop, asked) = mpsc::channel(2);
        let (ready, mut is_ready) = watch::channel(false);
        let dir = plan.data_dir.clone();
        let plan = Plan { operator_key: Some(operator::key(&dir)?.0), ..plan };
        let node = dir.clone();
        let tell = move |event: &Event<'_>| match event {
            Event::Operator { file } => {
                operator::write_capabilities(&node, file).expect("the operator's file is written")
            }
            Event::Ready { .. } => {
                // Nobody waits once the node is ready.
                let _ = ready.send(true);
            }
            _ => {}
        };
        let protections = vec![nothing("a process")];
        let host = Host { spawn, tell: Box::new(tell), stop: asked, protections };
        let (ends, mut ended) = oneshot::channel();
        let (end, ending) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // Of its own, so that everything which the kernel has started ends with it.
            let local = LocalSet::new();
            let life = local.run_until(start::live(plan, host));
            tokio::select! {
                outcome = life => { let _ = ends.send(outcome); }
                _ = ending => {}
            }
        });
        let started = async {
            tokio::select! {
                _ = is_ready.wait_for(|ready| *ready) => Ok(()),
                outcome = &mut ended => match outcome {
                    Ok(Err(fault)) => Err(fault),
                    _ => Err(Fault::internal("the node ended while it started")),
                },
            }
        };
        tokio::time::timeout(PATIENCE, started).await.map_err(Fault::internal)??;
        Ok(Node { dir, stop, ended, _end: end })
    }

    /// Lets the node drain and end.
    ///
    /// # Errors
    /// It ended with this fault.
    pub async fn down(self) -> Result<(), Fault> {
        let _ = self.stop.send(()).await;
        let ended = tokio::time::timeout(PATIENCE, self.ended).await.map_err(Fault::internal)?;
        ended.map_err(Fault::internal)?
    }

    /// What the operator holds.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub fn operator(&self) -> Result<(CapFile, HolderSecret), Fault> {
        let read = |name: &str| {
            std::fs::read_to_string(operator::directory(&self.dir).join(name))
                .map_err(Fault::internal)
        };
        let file = CapFile::parse(&read("operator.cap")?)?;
        Ok((file, HolderSecret::from_file_text(&read("operator.key")?)?))
    }

    /// The socket at which holders of a vat's objects connect.
    pub fn socket(&self, vat: &str) -> PathBuf {
        self.dir.join("run").join(format!("{vat}.sock"))
    }

    /// A new connection to a vat.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn connect(&self, vat: &str) -> Result<Connection, Fault> {
        Connection::open(&self.socket(vat)).await
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// What a process would have found after it confined itself, for a vat that confines nothing.
fn unconfined(spec: SpawnSpec, what: &str) -> io::Result<Boot> {
    let SpawnSpec { mut manifest, fds, .. } = spec;
    if let Some(dir) = &manifest.data_dir {
        std::fs::create_dir_all(dir)?;
    }
    let fds: BTreeMap<i32, OwnedFd> =
        fds.place(&mut manifest)?.into_iter().map(|(fd, number)| (number, fd)).collect();
    Ok(Boot { manifest, protections: vec![nothing(what)], fds })
}

fn nothing(what: &str) -> Protection {
    let detail = format!("{what} of a simulation");
    Protection { name: "process".into(), enforced: false, detail }
}

/// Every vat is a thread of this process, with an event loop of its own.
pub fn threads() -> Spawn {
    Box::new(|spec| {
        // A thread cannot be killed. Without its socket to the kernel a vat ends by itself.
        let lifeline = spec.fds.kernel.try_clone()?;
        let boot = unconfined(spec, "a thread")?;
        let (ended, exit) = watch::channel(None);
        std::thread::Builder::new().name(boot.manifest.vat.clone()).spawn(move || {
            let code = distos_node::vat::run(boot);
            let code = i32::from(code != std::process::ExitCode::SUCCESS);
            let _ = ended.send(Some(Exit::Code(code)));
        })?;
        let kill = Box::new(move || {
            let _ = shutdown(&lifeline, Shutdown::Both);
        });
        Ok(Rc::new(Inside { exit, kill }))
    })
}

/// Every vat is a task of the calling thread, so that nothing moves while a test looks. `life` says
/// what a vat does from its start to its end.
pub fn tasks(life: impl Fn(Boot) -> Life + 'static) -> Spawn {
    Box::new(move |spec| {
        let boot = unconfined(spec, "a task")?;
        let life = life(boot);
        let (ended, exit) = watch::channel(None);
        let (kill, killed) = mpsc::channel::<()>(1);
        tokio::task::spawn_local(async move {
            let code = async {
                let local = LocalSet::new();
                let mut killed = killed;
                tokio::select! {
                    outcome = local.run_until(life) => outcome.err().map_or(0, |f| i32::from(f.code())),
                    _ = killed.recv() => -1,
                }
            };
            let _ = ended.send(Some(Exit::Code(code.await)));
        });
        let kill = Box::new(move || {
            let _ = kill.try_send(());
        });
        Ok(Rc::new(Inside { exit, kill }))
    })
}

/// A vat inside this process.
struct Inside {
    exit: watch::Receiver<Option<Exit>>,
    kill: Box<dyn Fn()>,
}

impl Run for Inside {
    fn pid(&self) -> i32 {
        // What the kernel reads of this process is true of all its vats.
        std::process::id().cast_signed()
    }

    fn kill(&self) {
        (self.kill)();
    }

    fn wait(&self) -> LocalBoxFuture<'_, io::Result<Exit>> {
        let mut exit = self.exit.clone();
        Box::pin(async move {
            let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
            // A thread that panicked sends nothing.
            Ok(ended.ok().flatten().unwrap_or(Exit::Code(-1)))
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        (self.kill)();
    }
}
