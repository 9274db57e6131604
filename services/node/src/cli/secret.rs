//! `secret …`: values come in and go out in parcels, opened and sealed here alone.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use capnp::capability::FromClientHook as _;
use clap::{Args, Subcommand, ValueEnum};
use distos_abi::{Fault, NodeId, ObjectId, VatName};
use distos_delivery::{Content, Purpose, Recipient, RecipientKey, request_message, seal};
use distos_noise::{Card, Place};
use distos_schemas::capability_capnp::capability;
use distos_schemas::secrets_capnp::{SecretKind, recipient, secret, secret_info, secrets};
use distos_secrets::record::MAX_VALUE_BYTES;
use distos_types::{Chain, kind};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::holder::{Holder, call, now_ms, pick, read, read_cap_file};
use super::text::{self, row};
use super::{Context, Report, Stop, complain, emit, files, interruptible, settled, undo};

mod exec;
mod opening;

pub use opening::InitArgs;

/// The operator's and tenants' entry for the secret broker, which not every image has.
pub const ENTRY: &str = "secrets";
/// The entry's name in the capability file of one secret.
const ONE: &str = "secret";

/// Commands about secrets.
#[derive(Subcommand)]
pub enum SecretCommand {
    /// Whether the broker is open, and what it keeps
    #[command(after_help = "Example:\n  distos secret status")]
    Status,
    /// Make the broker's root key, and the shares that open it
    #[command(after_help = "\
Examples:
  distos secret init --threshold 3 --shares 5
prints five shares, once and never again: give each to another operator. Any three of them open the
broker after each start
  distos secret init --tpm --threshold 2 --shares 3
has the node's TPM open it at each start; two of the three shares do where the TPM does not, because
the node has booted something else
  distos secret init --threshold 2 --shares 2 --share-to /media/anna/share --share-to /media/ben/share
shows none: each is in a file that only its owner can read")]
    Init(InitArgs),
    /// Have the TPM open the broker from now on, as the node has booted now
    #[command(after_help = "\
Example:
  distos secret bind         after an update of firmware or image, once shares have opened the broker")]
    Bind,
    /// Open the broker with shares, one at a time or several
    #[command(after_help = "\
Example:
  distos secret unseal share-1.txt share-2.txt
  distos secret unseal -        reads one from standard input: shares never stand on a command line
  distos secret unseal --tpm    has the TPM open it, after `secret seal` say")]
    Unseal {
        /// Files with a share each, or '-' for standard input
        #[arg(required_unless_present = "tpm", value_name = "FILE")]
        shares: Vec<PathBuf>,
        /// Ask the TPM instead
        #[arg(long, conflicts_with = "shares")]
        tpm: bool,
    },
    /// Have the broker forget its root key, until operators unseal it
    #[command(after_help = "Example:\n  distos secret seal")]
    Seal,
    /// Keep a new secret
    #[command(after_help = "\
Examples:
  distos secret put db/password password.txt --as red.cap --out db.cap
  pwgen 40 1 | distos secret put db/password - --as red.cap
  distos secret put web/client --kind x509 --lease 1h --as red.cap")]
    Put(PutArgs),
    /// Read a secret, and have a lease on it
    #[command(after_help = "\
Examples:
  distos secret get db/password --out /run/red/password --as red.cap
  distos secret get --cap db.cap --out - --as blue.cap | login")]
    Get(GetArgs),
    /// Run a program with secrets in descriptors, and leases for as long as it runs
    #[command(after_help = "\
Examples:
  distos secret exec db/password --as red.cap -- psql --passfile {db/password}
  distos secret exec web/client --cap db.cap --as red.cap -- ./server --identity {web/client} --db {db/password}

Among the program's arguments, {NAME} is replaced by the path /proc/self/fd/N of a descriptor in which the
secret is: memory that nobody can change, which the program inherits and only its own user can open.
Nothing is in its environment, and no file on a disk. The leases are renewed while it runs and given back when
it ends. When one cannot be kept (it was revoked, say), the program is asked to end (SIGTERM).")]
    Exec(exec::ExecArgs),
    /// One's own secrets, without their values
    #[command(after_help = "Example:\n  distos secret list --as red.cap")]
    List,
    /// Put a new version in an old one's place; for a while both can be read
    #[command(after_help = "\
Example:
  distos secret rotate db/password --value new.txt --overlap 1h --as red.cap")]
    Rotate(RotateArgs),
    /// Have a lease run for longer
    #[command(
        after_help = "Example:\n  distos secret renew db/password --lease 17 --for 1h --as red.cap"
    )]
    Renew {
        /// Of which secret
        #[command(flatten)]
        which: Which,
        /// The lease, as `get` told
        #[arg(long, value_name = "N")]
        lease: u64,
        /// For how long from now [default: as long as it may]
        #[arg(long = "for", value_parser = text::parse_span_ms, value_name = "TIME")]
        lasting: Option<u64>,
    },
    /// Give a lease back
    #[command(after_help = "Example:\n  distos secret release db/password --lease 17 --as red.cap")]
    Release {
        /// Of which secret
        #[command(flatten)]
        which: Which,
        /// The lease, as `get` told
        #[arg(long, value_name = "N")]
        lease: u64,
    },
    /// End a secret with all that was leased of it; or leases only
    #[command(after_help = "\
Examples:
  distos secret revoke db/password --as red.cap             the secret is gone
  distos secret revoke db/password --leases --as red.cap    only who has read it has to read it again
  distos secret revoke --of-node 1f95…                       every lease of holders on that node (operators)")]
    Revoke(RevokeArgs),
}

/// One secret: one's own by its name, or one that was delegated.
#[derive(Args, Clone)]
pub struct Which {
    /// The secret's name
    #[arg(required_unless_present = "cap", conflicts_with = "cap")]
    name: Option<String>,
    /// Use the capability in this file instead of a name
    #[arg(long, value_name = "FILE")]
    cap: Option<PathBuf>,
    /// Which capability of the file
    #[arg(long, value_name = "ENTRY", requires = "cap")]
    entry: Option<String>,
}

/// What a reading gives.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// The value that is put
    Fixed,
    /// A new Ed25519 key pair each time
    Ed25519,
    /// A new key pair each time, and a client's certificate that ends with the lease
    X509,
}

/// Arguments of `secret put`.
#[derive(Args)]
pub struct PutArgs {
    /// 1 to 64 of a-z A-Z 0-9 . _ - /
    name: String,
    /// A file with the value, or '-' for standard input; only for a fixed secret
    #[arg(value_name = "FILE")]
    value: Option<PathBuf>,
    /// What a reading gives
    #[arg(long, value_enum, default_value_t = Kind::Fixed)]
    kind: Kind,
    /// Give it out only to holders on this node, and only while the node's evidence is good and fresh
    #[arg(long)]
    attested: bool,
    /// For how long a lease runs at most
    #[arg(long, default_value = "1h", value_parser = text::parse_span_ms, value_name = "TIME")]
    lease: u64,
    /// Also write the capability to it, to delegate from
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `secret get`.
#[derive(Args)]
pub struct GetArgs {
    #[command(flatten)]
    which: Which,
    /// A file in a directory that only its owner writes to, or '-' for standard output
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Also if standard output is a terminal
    #[arg(long)]
    force: bool,
    /// Which version [default: the newest]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    version: u32,
    /// For how long the lease runs [default: as long as it may]
    #[arg(long = "for", value_parser = text::parse_span_ms, value_name = "TIME")]
    lasting: Option<u64>,
}

/// Arguments of `secret rotate`.
#[derive(Args)]
pub struct RotateArgs {
    #[command(flatten)]
    which: Which,
    /// A file with the new value, or '-' for standard input; only for a fixed secret
    #[arg(long, value_name = "FILE")]
    value: Option<PathBuf>,
    /// How long the version before can still be read at most
    #[arg(long, default_value = "1d", value_parser = text::parse_span_ms, value_name = "TIME")]
    overlap: u64,
}

/// Arguments of `secret revoke`.
#[derive(Args)]
pub struct RevokeArgs {
    /// The secret's name
    #[arg(required_unless_present_any = ["cap", "node_id", "admit", "by"], conflicts_with = "cap")]
    name: Option<String>,
    /// Use the capability in this file instead of a name
    #[arg(long, value_name = "FILE")]
    cap: Option<PathBuf>,
    /// End leases only
    #[arg(long, conflicts_with = "node_id")]
    leases: bool,
    /// End only leases that were made by this capability, on all of the tenant's secrets
    #[arg(long, requires = "leases", conflicts_with_all = ["name", "cap"], value_name = "N")]
    by: Option<u64>,
    /// End every lease of holders on this node (64 hexadecimal digits), and give them none until --admit
    #[arg(long = "of-node", conflicts_with_all = ["name", "cap"], value_name = "NODE")]
    node_id: Option<String>,
    /// Give holders on this node leases again
    #[arg(long, conflicts_with_all = ["name", "cap", "leases", "node_id"], value_name = "NODE")]
    admit: Option<String>,
}

pub(super) async fn command(context: &Context, command: SecretCommand) -> Result<Report, Stop> {
    match command {
        SecretCommand::Status => interruptible(opening::show(context)).await,
        SecretCommand::Init(args) => settled(opening::init(context, args)).await,
        SecretCommand::Bind => settled(opening::bind(context)).await,
        SecretCommand::Unseal { shares, tpm: false } => {
            interruptible(opening::unseal(context, shares)).await
        }
        SecretCommand::Unseal { tpm: true, .. } => {
            interruptible(opening::unseal_by_tpm(context)).await
        }
        SecretCommand::Seal => interruptible(opening::close(context)).await,
        SecretCommand::Put(args) => {
            let value = interruptible(value_of(args.value.clone())).await?;
            settled(put(context, args, value)).await
        }
        SecretCommand::Get(args) => settled(get(context, args)).await,
        SecretCommand::Exec(args) => exec::command(context, args).await,
        SecretCommand::List => interruptible(list(context)).await,
        SecretCommand::Rotate(args) => {
            let value = interruptible(value_of(args.value.clone())).await?;
            settled(rotate(context, args, value)).await
        }
        SecretCommand::Renew { which, lease, lasting } => {
            interruptible(renew(context, which, lease, lasting)).await
        }
        SecretCommand::Release { which, lease } => {
            interruptible(release(context, which, lease)).await
        }
        SecretCommand::Revoke(args) => interruptible(revoke(context, args)).await,
    }
}

/// A broker, and who speaks to it.
struct Broker {
    holder: Holder,
    node: NodeId,
    vat: VatName,
}

impl Broker {
    fn of(holder: Holder, chain: &Chain) -> Broker {
        let (node, vat) = (chain.root().node, chain.root().vat.clone());
        Broker { holder, node, vat }
    }

    /// By the entry of the holder's file.
    async fn own(context: &Context) -> Result<(Broker, secrets::Client), Fault> {
        let holder = context.holder()?;
        let chain = holder.entry(ENTRY)?.chain.clone();
        let client = holder.root(ENTRY).await?;
        Ok((Broker::of(holder, &chain), client))
    }

    /// One secret.
    async fn one(context: &Context, which: &Which) -> Result<(Broker, One), Fault> {
        if let Some(path) = &which.cap {
            let holder = context.holder()?;
            let file = read_cap_file(path)?;
            let chain = &pick(&file, which.entry.as_deref())?.chain;
            if chain.root().kind != kind::SECRET {
                let kind = kind::name(chain.root().kind);
                let what = format!("this is a capability to a {kind}, not to a secret");
                return Err(Fault::malformed(what));
            }
            let client = holder.restore(chain).await?;
            let broker = Broker::of(holder, chain);
            // What it is called is not in the chain.
            let one = One { client, name: None, object: chain.root().object };
            return Ok((broker, one));
        }
        let (broker, client) = Broker::own(context).await?;
        let name = which.name.as_deref().unwrap_or_default();
        let mut request = client.open_request();
        request.get().set_name(name);
        let answer = call(request).await?;
        let client = read(|| answer.get()?.get_secret())?;
        let own: capability::Client = client.clone().cast_to();
        let answer = call(own.describe_request()).await?;
        let object = read(|| Ok(ObjectId(answer.get()?.get_info()?.get_object())))?;
        Ok((broker, One { client, name: Some(name.to_owned()), object }))
    }

    fn purpose<'a>(&'a self, content: Content<'a>) -> Purpose<'a> {
        Purpose { node: self.node, vat: &self.vat, holder: self.holder.secret.key(), content }
    }

    /// Seals to the key of the broker's card, which its node has signed.
    fn parcel(&self, card: &[u8], content: Content<'_>, plain: &[u8]) -> Result<Vec<u8>, Fault> {
        let place = Place { node: self.node, vat: self.vat.clone() };
        let key = Card::decode(card)?.verify(&place, now_ms())?;
        seal(RecipientKey(key.0), &self.purpose(content), plain)
    }

    /// A recipient for one answer, about `object`.
    fn recipient(
        &self,
        object: ObjectId,
        mut to: recipient::Builder<'_>,
    ) -> Result<Recipient, Fault> {
        let recipient = Recipient::new()?;
        let key = recipient.key();
        to.set_key(&key.0);
        let message = request_message(self.node, &self.vat, object, key);
        to.set_signature(&self.holder.secret.sign(&message));
        Ok(recipient)
    }
}

/// A secret that is used.
struct One {
    client: secret::Client,
    /// If it was named.
    name: Option<String>,
    object: ObjectId,
}

impl One {
    async fn name(&self) -> Result<String, Fault> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        Ok(self.newest().await?.0)
    }

    /// What it is called, and its newest version.
    async fn newest(&self) -> Result<(String, u32), Fault> {
        let answer = call(self.client.info_request()).await?;
        read(|| {
            let info = answer.get()?.get_info()?;
            Ok((info.get_name()?.to_string()?, info.get_version()))
        })
    }
}

async fn card(client: &secrets::Client) -> Result<Vec<u8>, Fault> {
    let answer = call(client.card_request()).await?;
    read(|| Ok(answer.get()?.get_card()?.to_vec()))
}

/// Reads what is secret: from a file, or from standard input on a thread of its own, so that Ctrl-C still works.
async fn secret_bytes(path: PathBuf, most: usize) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let read = move || {
        let source: Box<dyn Read> = match path.as_os_str() == "-" {
            true => Box::new(std::io::stdin().lock()),
            false => Box::new(File::open(&path).map_err(|e| files::io_fault(&path, &e))?),
        };
        // Long enough from the start: what grows leaves its old bytes behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
        let taken = source.take(most as u64 + 1).read_to_end(&mut bytes);
        taken.map_err(|e| files::io_fault(&path, &e))?;
        match bytes.len() {
            0 => Err(Fault::malformed(format!("{} has no content", path.display()))),
            len if len > most => {
                Err(Fault::malformed(format!("{} is longer than {most} bytes", path.display())))
            }
            _ => Ok(bytes),
        }
    };
    tokio::task::spawn_blocking(read).await.map_err(Fault::internal)?
}

async fn value_of(path: Option<PathBuf>) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
    match path {
        Some(path) => secret_bytes(path, MAX_VALUE_BYTES).await.map(Some),
        None => Ok(None),
    }
}

async fn put(
    context: &Context,
    args: PutArgs,
    value: Option<Zeroizing<Vec<u8>>>,
) -> Result<Report, Fault> {
    let (broker, client) = Broker::own(context).await?;
    if let Some(out) = args.out.as_ref().filter(|out| out.exists()) {
        return Err(Fault::Exists(format!("{}: choose another --out", out.display())));
    }
    let parcel = match (args.kind, &value) {
        (Kind::Fixed, None) => {
            return Err(Fault::malformed("name the file with the value, or '-'"));
        }
        (Kind::Fixed, Some(value)) => {
            let (attested, lease_ms) = (args.attested, args.lease);
            let content = Content::NewValue { name: &args.name, attested, lease_ms };
            broker.parcel(&card(&client).await?, content, value)?
        }
        (_, None) => Vec::new(),
        (_, Some(_)) => return Err(Fault::malformed("only a fixed secret has a value")),
    };
    let mut request = client.put_request();
    let mut params = request.get();
    params.set_name(&args.name);
    params.set_kind(match args.kind {
        Kind::Fixed => SecretKind::Fixed,
        Kind::Ed25519 => SecretKind::Ed25519,
        Kind::X509 => SecretKind::X509,
    });
    params.set_value(&parcel);
    params.set_attested(args.attested);
    params.set_lease_ms(args.lease);
    let answer = call(request).await?;
    let chain = read(|| Ok(answer.get()?.get_chain()?.to_vec()))?;
    let mut json = json!({ "name": args.name, "version": 1 });
    let mut text = format!("secret {} is kept", args.name);
    if let Some(out) = &args.out {
        let file = broker.holder.file_of(ONE, Chain::decode(&chain)?);
        files::write(out, file.to_text().as_bytes(), files::SECRET)?;
        json["cap"] = json!(out.display().to_string());
        text = format!("{text}: {}", out.display());
    }
    Ok(Report { json, text })
}

/// Others could put another file, or a link, in its place: whoever may write to the directory, or owns it.
fn check_private(out: &Path) -> Result<(), Fault> {
    let directory = out.parent().filter(|parent| *parent != Path::new(""));
    let directory = directory.unwrap_or(Path::new("."));
    let found = std::fs::metadata(directory).map_err(|e| files::io_fault(directory, &e))?;
    let own = [rustix::process::geteuid().as_raw(), 0].contains(&found.uid());
    if found.mode() & 0o022 != 0 || !own {
        return Err(Fault::malformed(format!(
            "{}: others may write to this directory: write a secret to one that is yours alone",
            directory.display()
        )));
    }
    Ok(())
}

/// A reading.
struct Given {
    name: String,
    version: u32,
    lease: u64,
    until_ms: u64,
    value: Zeroizing<Vec<u8>>,
}

/// Reads a version (0: the newest), under a lease that runs for so long (0: as long as it may).
async fn given(
    context: &Context,
    which: &Which,
    wanted: u32,
    lasting_ms: u64,
) -> Result<Given, Fault> {
    let (broker, one) = Broker::one(context, which).await?;
    let name = one.name().await?;
    let mut request = one.client.get_request();
    let mut params = request.get();
    params.set_version(wanted);
    params.set_ttl_ms(lasting_ms);
    let recipient = broker.recipient(one.object, params.init_to())?;
    let answer = call(request).await?;
    let (parcel, version, lease, until_ms) = read(|| {
        let answer = answer.get()?;
        let parcel = answer.get_parcel()?.to_vec();
        Ok((parcel, answer.get_version(), answer.get_lease(), answer.get_until_ms()))
    })?;
    if wanted != 0 && version != wanted {
        let why = format!("version {version} came in place of {wanted}: ask again");
        return Err(Fault::Unauthenticated(why));
    }
    let content = Content::Reading { name: &name, version, lease };
    let value = recipient.open(&broker.purpose(content), &parcel)?;
    Ok(Given { name, version, lease, until_ms, value })
}

async fn get(context: &Context, args: GetArgs) -> Result<Report, Fault> {
    let to_stdout = args.out == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() && !args.force {
        return Err(Fault::malformed(
            "a terminal would show the secret and may keep it: --out FILE, or --force",
        ));
    }
    if !to_stdout {
        check_private(&args.out)?;
    }
    let lasting_ms = args.lasting.unwrap_or(0);
    let Given { name, version, lease, until_ms, value } =
        given(context, &args.which, args.version, lasting_ms).await?;
    let written = match to_stdout {
        true => emit(&value).await,
        false => files::write(&args.out, &value, files::SECRET),
    };
    if written.is_err() {
        // Nobody has what it is for.
        undo(released(context, &args.which, lease)).await;
    }
    written?;
    if to_stdout {
        complain(&format!("lease {lease}, {}", text::expiry(until_ms, now_ms())));
        return Ok(Report::nothing());
    }
    let out = args.out.display();
    let json = json!({
        "name": name, "version": version, "lease": lease, "until_ms": until_ms, "out": out.to_string(),
    });
    let until = text::expiry(until_ms, now_ms());
    let text = format!("version {version} of {name}: {out}\nlease {lease}, {until}");
    Ok(Report { json, text })
}

async fn list(context: &Context) -> Result<Report, Fault> {
    let (_broker, client) = Broker::own(context).await?;
    let answer = call(client.list_request()).await?;
    let all = read(|| {
        answer.get()?.get_secrets()?.iter().map(info_json).collect::<capnp::Result<Vec<_>>>()
    })?;
    let mut rows = vec![row(["secret", "kind", "version", "overlapping", "leases", "at most"])];
    for secret in &all {
        let kind = secret["kind"].as_str().unwrap_or_default();
        let attested = if secret["attested"] == true { ", attested" } else { "" };
        rows.push(row([
            secret["name"].as_str().unwrap_or_default(),
            &format!("{kind}{attested}"),
            &secret["version"].to_string(),
            &secret["overlapping"].to_string(),
            &secret["leases"].to_string(),
            &text::span_ms(secret["lease_ms"].as_u64().unwrap_or(0)),
        ]));
    }
    Ok(Report { text: text::table(&rows), json: json!({ "secrets": all }) })
}

fn info_json(info: secret_info::Reader<'_>) -> capnp::Result<Value> {
    let kind = match info.get_kind()? {
        SecretKind::Fixed => "fixed",
        SecretKind::Ed25519 => "ed25519",
        SecretKind::X509 => "x509",
        SecretKind::Account => "account",
    };
    Ok(json!({
        "name": info.get_name()?.to_str()?, "kind": kind, "attested": info.get_attested(),
        "version": info.get_version(), "overlapping": info.get_overlapping(),
        "leases": info.get_leases(), "lease_ms": info.get_lease_ms(),
    }))
}

async fn rotate(
    context: &Context,
    args: RotateArgs,
    value: Option<Zeroizing<Vec<u8>>>,
) -> Result<Report, Fault> {
    let (broker, one) = Broker::one(context, &args.which).await?;
    let (name, newest) = one.newest().await?;
    let mut request = one.client.rotate_request();
    if let Some(value) = &value {
        let client: secrets::Client = broker.holder.root(ENTRY).await?;
        let version = newest.saturating_add(1);
        let content = Content::NextValue { object: one.object, version, overlap_ms: args.overlap };
        request.get().set_value(&broker.parcel(&card(&client).await?, content, value)?);
    }
    request.get().set_overlap_ms(args.overlap);
    let answer = call(request).await?;
    let version = read(|| Ok(answer.get()?.get_version()))?;
    let text = format!("{name} has version {version}");
    Ok(Report { json: json!({ "name": name, "version": version }), text })
}

/// Until when a lease runs that is made to last for so long (0: as long as it may).
async fn renewed(
    context: &Context,
    which: &Which,
    lease: u64,
    lasting_ms: u64,
) -> Result<u64, Fault> {
    let (_broker, one) = Broker::one(context, which).await?;
    let mut request = one.client.renew_request();
    request.get().set_lease(lease);
    request.get().set_ttl_ms(lasting_ms);
    let answer = call(request).await?;
    read(|| Ok(answer.get()?.get_until_ms()))
}

async fn renew(
    context: &Context,
    which: Which,
    lease: u64,
    lasting: Option<u64>,
) -> Result<Report, Fault> {
    let until_ms = renewed(context, &which, lease, lasting.unwrap_or(0)).await?;
    let text = format!("lease {lease}, {}", text::expiry(until_ms, now_ms()));
    Ok(Report { json: json!({ "lease": lease, "until_ms": until_ms }), text })
}

async fn released(context: &Context, which: &Which, lease: u64) -> Result<(), Fault> {
    let (_broker, one) = Broker::one(context, which).await?;
    let mut request = one.client.release_request();
    request.get().set_lease(lease);
    call(request).await.map(drop)
}

async fn release(context: &Context, which: Which, lease: u64) -> Result<Report, Fault> {
    released(context, &which, lease).await?;
    let text = format!("lease {lease} has ended");
    Ok(Report { json: json!({ "released": lease }), text })
}

fn leases_ended(leases: u64) -> Result<Report, Fault> {
    let text = format!("{leases} leases ended");
    Ok(Report { json: json!({ "leases": leases }), text })
}

fn node_of(digits: &str) -> Result<[u8; 32], Fault> {
    let mut id = [0; 32];
    hex::decode_to_slice(digits, &mut id)
        .map_err(|_| Fault::malformed("a node's id is 64 hexadecimal digits"))?;
    Ok(id)
}

async fn revoke(context: &Context, args: RevokeArgs) -> Result<Report, Fault> {
    if let Some(node) = &args.admit {
        let (_broker, client) = Broker::own(context).await?;
        let mut request = client.admit_node_request();
        request.get().set_node(&node_of(node)?);
        call(request).await?;
        let text = format!("holders on node {node} get leases again");
        return Ok(Report { json: json!({ "admitted": node }), text });
    }
    if let Some(node) = &args.node_id {
        let id = node_of(node)?;
        let (_broker, client) = Broker::own(context).await?;
        let mut request = client.end_node_request();
        request.get().set_node(&id);
        let answer = call(request).await?;
        let (leases, micros) =
            read(|| Ok((answer.get()?.get_leases(), answer.get()?.get_micros())))?;
        let text = format!("{leases} leases ended in {}", text::micros(micros));
        return Ok(Report { json: json!({ "leases": leases, "micros": micros }), text });
    }
    if let Some(cap) = args.by {
        let (_broker, client) = Broker::own(context).await?;
        let mut request = client.end_cap_request();
        request.get().set_cap_id(cap);
        let answer = call(request).await?;
        return leases_ended(read(|| Ok(answer.get()?.get_leases()))?);
    }
    let which = Which { name: args.name, cap: args.cap, entry: None };
    let (_broker, one) = Broker::one(context, &which).await?;
    if args.leases {
        let answer = call(one.client.end_leases_request()).await?;
        return leases_ended(read(|| Ok(answer.get()?.get_leases()))?);
    }
    call(one.client.drop_request()).await?;
    let name = which.name.unwrap_or_default();
    Ok(Report { text: "the secret is gone".into(), json: json!({ "dropped": name }) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_is_not_written_where_others_could_put_something_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("password");
        let set = |mode| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (mode, fits) in [(0o700, true), (0o755, true), (0o770, false), (0o777, false)] {
            set(mode);
            assert_eq!(check_private(&out).is_ok(), fits, "{mode:o}");
        }
        set(0o700);
        match std::os::unix::fs::chown(dir.path(), Some(12_345), None) {
            Ok(()) => assert!(check_private(&out).is_err(), "another's directory"),
            Err(_) => println!("NOT TESTED: only root gives a directory to somebody else"),
        }
    }
}
