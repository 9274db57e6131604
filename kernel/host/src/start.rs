//! The life of a node: open the journal, replay it, make the table, start the vats, serve until
//! told to stop.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Authority, CapId, Caveats, Fault, HolderKey, Kind, Rights, TenantId, VatName};
use distos_core::{Command, Facts, Forest, Outcome};
use distos_rpc::boot::Protection;
use distos_table::Table;
use distos_types::{CapEntry, CapFile, Chain, HolderSecret};
use rustix::process::Resource;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::events::{Event, emit};
use crate::journal::{JournalHandle, codec};
use crate::kernel::Kernel;
use crate::plan::{KERNEL_NAME, OperatorGrant, Plan};
use crate::server::sign_root;
use crate::spawn::{Run, SpawnSpec, spawn_vat};
use crate::vats::Vats;
use crate::{sandbox, sys};

/// How long the kernel and its vats hold a processor while others wait for it. What they do for one
/// holder is done in less, and whoever works for another holder, on the same processor, waits for no
/// longer.
const TURN: Duration = Duration::from_micros(100);

/// What a node needs of the machine that it runs on. Production has one ([`main`]); simulation
/// has others, in which vats are threads or tasks of one process.
pub struct Host {
    /// Starts a vat.
    pub spawn: Box<dyn Fn(SpawnSpec) -> std::io::Result<Rc<dyn Run>>>,
    /// Hears what happens to the node.
    pub tell: Box<dyn Fn(&Event<'_>)>,
    /// A message asks the node to stop; a second one, while it drains, to stop at once.
    pub stop: mpsc::Receiver<()>,
    /// What protects the kernel's own process.
    pub protections: Vec<Protection>,
}

/// Runs a node until it is told to stop; the body of the kernel process. Exit code 0 after an
/// orderly stop, else the fault's.
pub fn main(plan: Plan) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Fault::internal(error)),
    };
    let node = async {
        // Lowering one's own limit is always permitted; what holds is read back next.
        let _ = sys::limit(Resource::Core, 0);
        // Where it is refused, vats take their turns as every other program does.
        let _ = sys::take_turns_of(TURN);
        let host = Host {
            spawn: Box::new(|spec| Ok(Rc::new(spawn_vat(spec)?))),
            tell: Box::new(emit),
            stop: stop_signals()?,
            protections: vec![sandbox::forbid_dumps()],
        };
        live(plan, host).await
    };
    match tokio::task::LocalSet::new().block_on(&runtime, node) {
        Ok(()) => {
            emit(&Event::Stopped);
            ExitCode::SUCCESS
        }
        Err(fault) => failed(&fault),
    }
}

fn failed(fault: &Fault) -> ExitCode {
    emit(&Event::Failed { why: fault.to_string() });
    ExitCode::from(fault.code())
}

/// The life of a node, on the calling thread's `LocalSet`.
///
/// # Errors
/// The node's directory is damaged or of another kind, or a vat cannot be started.
pub async fn live(plan: Plan, host: Host) -> Result<(), Fault> {
    let Host { spawn, tell, mut stop, mut protections } = host;
    let dirs = Dirs::make(&plan.data_dir)?;
    let secret = kernel_secret(&dirs.kernel)?;
    protections.push(Protection::keys_locked());
    tell(&Event::Kernel { pid: std::process::id(), protections: &protections });
    let (journal, frames) = JournalHandle::open(&dirs.kernel.join("journal"))?;

    let mut records = Vec::with_capacity(frames.len());
    for frame in &frames {
        let record = codec::decode(&frame.payload)
            .map_err(|e| Fault::Corrupt(format!("journal record {}: {e}", frame.seq)))?;
        records.push((frame.time_ms, record));
    }
    let last_epoch = records.iter().filter_map(|(_, record)| record.epoch()).max().unwrap_or(0);
    let mut forest = Forest::new(last_epoch + 1, plan.slots);
    for (time_ms, record) in &records {
        forest.replay(*time_ms, record)?;
    }
    drop((frames, records));

    let (table, table_fd) = Table::create(plan.slots).map_err(Fault::internal)?;
    let kernel = Rc::new(Kernel::new(forest, table, journal, secret));
    kernel.apply(Command::Boot { image_hash: plan.image_hash }).await?;
    record_signer(&kernel, &plan).await?;
    tell(&Event::Operator { file: grant_operator(&kernel, &plan, &dirs).await?.to_text() });
    let epoch = kernel.forest.borrow().epoch();
    tokio::task::spawn_local(kernel.clone().housekeep());

    let vats = Rc::new(Vats::new(kernel.clone(), plan, table_fd, spawn, tell));
    let started = tokio::select! {
        started = vats.start_all() => started,
        () = asked(&mut stop) => Err(Fault::unavailable(0, "stopped while it started")),
    };
    if let Err(fault) = started {
        vats.end_all().await;
        return Err(fault);
    }
    (vats.tell)(&Event::Ready { node: kernel.node().to_string(), epoch });
    tokio::select! {
        () = asked(&mut stop) => {}
        () = vats.shutdown.notified() => {}
        () = vats.shutdown_now.notified() => vats.shutdown_now.notify_one(),
    }
    // A second signal, or `down --now`, does not wait for the drain.
    tokio::select! {
        () = vats.shutdown_now.notified() => {}
        () = asked(&mut stop) => {}
        () = async { vats.drain().await; vats.close_outbox().await } => {}
    }
    vats.end_all().await;
    kernel.journal.sync().await
}

/// Tells the auditor whose word the image rests on, durably before any service starts. Only the
/// kernel reports in this name: no vat may have it.
async fn record_signer(kernel: &Rc<Kernel>, plan: &Plan) -> Result<(), Fault> {
    let who = match plan.image_signer {
        Some(signer) => format!("signed by {}", HolderKey(signer)),
        None => "unsigned".to_owned(),
    };
    let report = Command::Report {
        vat: VatName::new(KERNEL_NAME)?,
        kind: "image".to_owned(),
        tenant: TenantId::OPERATOR,
        cap: CapId(0),
        detail: format!("image: {who}, {}", plan.image),
    };
    kernel.apply(report).await?;
    kernel.journal.sync().await
}

/// Each SIGTERM and SIGINT as a message.
fn stop_signals() -> Result<mpsc::Receiver<()>, Fault> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Fault::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Fault::internal)?;
    // Two are all that anybody can mean.
    let (asks, asked) = mpsc::channel(2);
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = asks.try_send(());
        }
    });
    Ok(asked)
}

/// Resolves when the node is asked to stop. Nobody who could ask is no reason to.
async fn asked(stop: &mut mpsc::Receiver<()>) {
    if stop.recv().await.is_none() {
        std::future::pending().await
    }
}

/// The node's directories, each with its own readers.
struct Dirs {
    kernel: PathBuf,
    run: PathBuf,
}

impl Dirs {
    fn make(root: &Path) -> Result<Dirs, Fault> {
        let dirs = Dirs { kernel: root.join("kernel"), run: root.join("run") };
        // Vats reach their own directories by path before they give the path up, and holders of
        // any uid reach the sockets; the rest is closed.
        let (all, vats) = (root.to_path_buf(), root.join("vats"));
        for (dir, mode) in
            [(&all, 0o711), (&vats, 0o711), (&dirs.run, 0o755), (&dirs.kernel, 0o700)]
        {
            make_dir(dir, mode)
                .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(mode)))
                .map_err(|e| Fault::internal(format!("{}: {e}", dir.display())))?;
        }
        Ok(dirs)
    }
}

/// Makes a directory that no crash takes back with what is in it.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // What may not be read is the operator's, and so is making it durable.
    match dir.parent().map(std::fs::File::open) {
        Some(Ok(parent)) => parent.sync_all(),
        _ => Ok(()),
    }
}

/// The key that signs root certificates; made at the first boot.
fn kernel_secret(dir: &Path) -> Result<HolderSecret, Fault> {
    let path = dir.join("kernel.key");
    match std::fs::read_to_string(&path) {
        Ok(text) => HolderSecret::from_file_text(&zeroize::Zeroizing::new(text))
            .map_err(|e| Fault::Corrupt(format!("{}: {e}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret =
                HolderSecret::fill(|seed| getrandom::fill(seed)).map_err(Fault::internal)?;
            write_secret(&path, secret.to_file_text().as_bytes())
                .map_err(|e| Fault::internal(format!("{}: {e}", path.display())))?;
            Ok(secret)
        }
        Err(error) => Err(Fault::internal(format!("{}: {error}", path.display()))),
    }
}

/// Writes a whole file durably: a crash leaves none or a whole one.
fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// Gives the operator what the image says, as a sturdy capability file bound to the operator's
/// key.
async fn grant_operator(kernel: &Rc<Kernel>, plan: &Plan, dirs: &Dirs) -> Result<CapFile, Fault> {
    let holder = plan.operator_key.map(HolderKey);
    let holder = holder.ok_or_else(|| Fault::malformed("the plan names no key of the operator"))?;
    withdraw_roots(kernel, plan).await?;
    let mut entries = Vec::new();
    for grant in &plan.operator {
        let chain = operator_chain(kernel, grant, holder).await?;
        entries.push(CapEntry { name: grant.name.clone(), chain });
    }
    Ok(CapFile { node: kernel.node(), sockets: Some(dirs.run.display().to_string()), entries })
}

/// Ends what the operator has and the image does not give it any more, with all that rested on it.
/// What an image adds comes as a new root beside the old one, so that tenants keep what they were
/// given.
async fn withdraw_roots(kernel: &Rc<Kernel>, plan: &Plan) -> Result<(), Fault> {
    let roots = kernel.forest.borrow().roots_of(TenantId::OPERATOR);
    for root in roots {
        let named = |grant: &&OperatorGrant| {
            grant.vat == root.facts.vat.as_str()
                && grant.kind == root.facts.kind.0
                && Rights(grant.rights).contains(root.facts.authority.rights)
        };
        if !plan.operator.iter().any(|grant| named(&grant)) {
            kernel.revoke(Command::Revoke { vat: root.facts.vat, slot: root.slot }).await?;
        }
    }
    Ok(())
}

/// The operator's certificate for one grant, of the root that it has or of a new one.
async fn operator_chain(
    kernel: &Rc<Kernel>,
    grant: &OperatorGrant,
    holder: HolderKey,
) -> Result<Chain, Fault> {
    let vat = VatName::new(&grant.vat)?;
    let kind = Kind(grant.kind);
    let authority = Authority { rights: Rights(grant.rights), caveats: Caveats::NONE };
    let roots = kernel.forest.borrow().roots_of(TenantId::OPERATOR);
    let wanted = (&vat, kind, authority);
    let fits = |facts: &Facts| (&facts.vat, facts.kind, facts.authority) == wanted;
    let slot = match roots.iter().find(|root| fits(&root.facts)) {
        Some(root) => root.slot,
        None => {
            let (vat, tenant) = (vat.clone(), TenantId::OPERATOR);
            match kernel.apply(Command::MintRoot { vat, kind, authority, holder, tenant }).await? {
                Outcome::Granted(view) => view.slot,
                _ => return Err(Fault::internal("a root yields a grant")),
            }
        }
    };
    let outcome =
        kernel.apply(Command::PersistCheck { vat: vat.clone(), slot, wanted: authority }).await?;
    sign_root(kernel, vat, outcome)
}
