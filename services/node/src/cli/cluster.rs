//! `cluster …`: a cluster's root and issuers, and the SVIDs that they sign; for an operator's own
//! machine. None of it needs a node.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use distos_abi::Fault;
use distos_identity::{
    Bundle, ClusterName, Home, Identity, Issuer, KeyExchange, MAX_BUNDLE_BYTES, MAX_PEM_BYTES,
    MAX_SVID_LIFETIME_S, MAX_TOKEN_BYTES, Peer, Root, Serial, SpiffeId, Subject, Token,
    TokenAuthority, TokenKey, Usage, Validity, did, from_pem, to_pem,
};
use distos_membership::{Configuration, MAX_CONFIGURATION_BYTES, Signed, Voter, Voting};
use distos_types::HolderSecret;
use serde_json::{Value, json};

use super::cap::public_key;
use super::files;
use super::holder::{named, now_ms, random, read_secret_file};
use super::image::keep_key;
use super::{Report, text};

/// How far clocks in a cluster may differ: a certificate holds from so long before it is signed.
const SKEW_S: u64 = 60;

/// Commands about who is who in a cluster.
#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Make a cluster: the root's key, and the bundle by which its members know one another
    #[command(after_help = "\
Example:
  distos cluster init demo.example --root root.key --bundle bundle.json
writes root.key (whoever has it decides who is who: keep it on a machine without a network), root.pub,
and bundle.json (public: every member needs it).")]
    Init(InitArgs),
    /// Let a key issue SVIDs: the root signs its certificate
    #[command(after_help = "\
Examples:
  distos cluster issuer issuer.pub --root root.key --bundle bundle.json
  distos cluster issuer issuer.pub --root root.key --bundle bundle.json --home node/1f95…
writes issuer.pem. With --home the issuer runs on that node, and then never signs for it: whoever takes
that node over cannot go on vouching for it. `distos image keygen issuer.key` makes a key pair.")]
    Issuer(IssuerArgs),
    /// Sign an SVID: for so long, whoever has this key is a node, a service or an agent
    #[command(after_help = "\
Examples:
  distos cluster svid node/1f95… node.pub --issuer issuer.key
  distos cluster svid node/1f95…/service/memory memory.pub --issuer issuer.key --lasting 10m
  distos cluster svid tenant/red/agent/z6Mk… red.pub --issuer issuer.key
writes node.pem: the SVID, and its issuer's certificate behind it. `distos cluster did` shows a key as
agents are named. The issuer's certificate stands beside its key, as issuer.pem.")]
    Svid(SvidArgs),
    /// Have the members take tokens (JWT SVIDs) that a node signs for tenants' agents
    #[command(after_help = "\
Example: with the key for tokens that `distos network status` shows on that node
  distos cluster tokens 02c4… --home node/1f95… --bundle bundle.json
  distos cluster tokens 02c4… --remove
puts the key into the bundle, with the next number, or takes it out. Give that bundle to everybody:
members take it with `distos network join --bundle bundle.json`.")]
    Tokens(TokensArgs),
    /// Check a token (a JWT SVID), and say whose it is
    #[command(after_help = "\
Example:
  distos workload token https://shop.example --as red.cap > token
  distos cluster token token --audience https://shop.example --bundle bundle.json
Exit codes as of `cluster verify`.")]
    Token(TokenArgs),
    /// Say what holds for the whole cluster: who votes on its nodes, and how keys are agreed on
    #[command(after_help = "\
Examples:
  distos cluster configure --voter node/1f95…=KEY --voter node/77c0…=KEY --voter node/c2a1…=KEY --admit 2
  distos cluster configure --require-hybrid
writes configuration.json, signed by the root; give it to any node with `distos network configure`, and that
one tells the others. KEY is a node's issuer key, as `distos network status` shows it there: with that it signs
its votes. Each configuration says all that holds, and has a greater number than the one before it: one more
than that of the file that it replaces, which you keep. Without a voter, each node's operator
decides whom that node lets in.")]
    Configure(ConfigureArgs),
    /// Check an SVID, and say whose it is
    #[command(after_help = "\
Example:
  distos cluster verify node.pem --bundle bundle.json
  distos cluster verify node.pem --bundle bundle.json --for server --at 2026-11-22T10:00:00Z
Exit code 0 if it is somebody's; 12 if its time is over, 22 if it is forged or a stranger's, 16 if it is
no SVID at all.")]
    Verify(VerifyArgs),
    /// Show a key as a DID, with its document
    #[command(after_help = "Example:\n  distos cluster did red.pub")]
    Did(DidArgs),
}

/// Arguments of `cluster init`.
#[derive(Args)]
pub struct InitArgs {
    /// The cluster's name, its SPIFFE trust domain: of a-z, 0-9, '.', '-' and '_'
    name: String,
    /// The root's secret key file to make; the public key goes beside it, with the extension .pub
    #[arg(long, value_name = "FILE", default_value = "root.key")]
    root: PathBuf,
    /// The bundle to make
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
    /// How long the root holds
    #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = text::parse_span_ms)]
    lasting: u64,
}

/// Arguments of `cluster issuer`.
#[derive(Args)]
pub struct IssuerArgs {
    /// The issuer's public key: its file, or the key itself
    #[arg(value_name = "PUBFILE")]
    key: String,
    /// The root's secret key
    #[arg(long, value_name = "FILE", default_value = "root.key")]
    root: PathBuf,
    /// The cluster's bundle
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
    /// Where the issuer runs: node/N, or offline if on no node of the cluster
    #[arg(long, value_name = "NODE", default_value = "offline")]
    home: String,
    /// How long it may sign
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = text::parse_span_ms)]
    lasting: u64,
    /// The certificate to write [default: the key's file with the extension .pem]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `cluster svid`.
#[derive(Args)]
pub struct SvidArgs {
    /// Who it is: node/N, node/N/service/S or tenant/T/agent/A
    #[arg(value_name = "WHO")]
    who: String,
    /// The public key that proves it: its file, or the key itself
    #[arg(value_name = "PUBFILE")]
    key: String,
    /// The issuer's secret key; its certificate beside it, with the extension .pem
    #[arg(long, value_name = "FILE", default_value = "issuer.key")]
    issuer: PathBuf,
    /// How long it holds: a day at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = text::parse_span_ms)]
    lasting: u64,
    /// The file to write [default: the key's file with the extension .pem]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `cluster tokens`.
#[derive(Args)]
pub struct TokensArgs {
    /// The node's key for tokens
    #[arg(value_name = "KEY")]
    key: TokenKey,
    /// The node that has it
    #[arg(long, value_name = "NODE", required_unless_present = "remove")]
    home: Option<String>,
    /// Take its tokens no more
    #[arg(long, conflicts_with = "home")]
    remove: bool,
    /// The cluster's bundle, which is changed
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
}

/// Arguments of `cluster token`.
#[derive(Args)]
pub struct TokenArgs {
    /// The token: a file with nothing else in it
    file: PathBuf,
    /// The name by which whoever takes it goes
    #[arg(long, value_name = "NAME")]
    audience: String,
    /// The cluster's bundle
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
    /// When, as 2026-11-22T10:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = text::parse_instant_s)]
    at: Option<u64>,
}

/// Arguments of `cluster configure`.
#[derive(Args)]
pub struct ConfigureArgs {
    /// A node that votes, and the key with which it signs its votes: once for each
    #[arg(long = "voter", value_name = "NODE=KEY")]
    voters: Vec<String>,
    /// How many voters it takes to let a node in [default: as before, or more than half]
    #[arg(long, value_name = "VOTES", requires = "voters")]
    admit: Option<u32>,
    /// How many voters it takes to put a node out [default: as before, or one]
    #[arg(long, value_name = "VOTES", requires = "voters")]
    remove: Option<u32>,
    /// No connection whose keys were not agreed on with ML-KEM, which holds against quantum computers
    #[arg(long)]
    require_hybrid: bool,
    /// Begin anew: nothing of the configuration before it holds but what is said again, and no vote that was cast
    /// counts; voters cast again what their own lists say
    #[arg(long)]
    anew: bool,
    /// The configuration's number [default: one more than that of the file that it replaces]
    #[arg(long, value_name = "NUMBER")]
    number: Option<u64>,
    /// The root's secret key
    #[arg(long, value_name = "FILE", default_value = "root.key")]
    root: PathBuf,
    /// The cluster's bundle
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "configuration.json")]
    out: PathBuf,
}

/// Arguments of `cluster verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// The SVID: a file of certificates
    file: PathBuf,
    /// The cluster's bundle
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
    /// On which side of a connection
    #[arg(long = "for", value_name = "SIDE", default_value = "client")]
    side: Side,
    /// When, as 2026-11-22T10:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = text::parse_instant_s)]
    at: Option<u64>,
}

/// A side of a connection.
#[derive(Clone, Copy, ValueEnum)]
enum Side {
    /// Whoever connects
    Client,
    /// Whoever is connected to
    Server,
}

/// Arguments of `cluster did`.
#[derive(Args)]
pub struct DidArgs {
    /// The public key: its file, or the key itself
    #[arg(value_name = "PUBFILE")]
    key: String,
}

pub(super) async fn command(command: ClusterCommand) -> Result<Report, Fault> {
    match command {
        ClusterCommand::Init(args) => init(&args),
        ClusterCommand::Issuer(args) => issuer(&args),
        ClusterCommand::Svid(args) => svid(&args),
        ClusterCommand::Tokens(args) => tokens(&args),
        ClusterCommand::Token(args) => token(&args),
        ClusterCommand::Configure(args) => configure(&args),
        ClusterCommand::Verify(args) => verify(&args),
        ClusterCommand::Did(args) => did(&args),
    }
}

fn init(args: &InitArgs) -> Result<Report, Fault> {
    let cluster = ClusterName::new(&args.name)?;
    // Signed before anything is written: what cannot be signed leaves nothing.
    let validity = from_now(args.lasting)?;
    let secret = HolderSecret::from_seed(random()?);
    let root = Root::new(cluster.clone(), &secret).certificate(validity, serial()?)?;
    let bundle = Bundle::new(vec![root], 1)?;
    vacant(&args.bundle)?;
    keep_key(&args.root, &secret)?;
    // Not before: the bundle's file may be one of those.
    let kept = vacant(&args.bundle).and_then(|()| {
        files::write_durably(&args.bundle, bundle.to_json().as_bytes(), files::PUBLIC)
            .inspect_err(|_| drop(std::fs::remove_file(&args.bundle)))
    });
    kept.inspect_err(|_| {
        // A root without a bundle is nobody's, and would be in the way of the next try.
        drop(std::fs::remove_file(&args.root));
        drop(std::fs::remove_file(args.root.with_extension("pub")));
    })?;
    let key = secret.key().to_string();
    let (root, bundle) = (args.root.display().to_string(), args.bundle.display().to_string());
    let until = until(validity.until_s);
    let text = format!(
        "cluster {cluster}, root {key}, until {until}\n  \
         {root}  its secret key: keep it on a machine without a network\n  \
         {bundle}  what every member needs"
    );
    let json = json!({
        "cluster": cluster.as_str(), "root": key, "secret": root, "bundle": bundle,
        "until_s": validity.until_s,
    });
    Ok(Report { json, text })
}

/// The cluster's bundle and the secret key of one of its roots.
fn bundle_and_root(bundle: &Path, root: &Path) -> Result<(Bundle, HolderSecret), Fault> {
    let (read, secret) = (read_bundle(bundle)?, read_secret_file(root)?);
    if !read.keys().any(|root| root == secret.key()) {
        let (root, bundle) = (root.display(), bundle.display());
        return Err(Fault::Unauthenticated(format!(
            "{root} is no root of {bundle}: nobody would take what it signs"
        )));
    }
    Ok((read, secret))
}

fn issuer(args: &IssuerArgs) -> Result<Report, Fault> {
    let key = public_key(&args.key)?;
    let home: Home = args.home.parse()?;
    let (bundle, secret) = bundle_and_root(&args.bundle, &args.root)?;
    let out = out(args.out.as_deref(), &args.key, 1)?;
    let root = Root::new(bundle.cluster().clone(), &secret);
    let validity = from_now(args.lasting)?;
    let certificate = root.certify(key, home, validity, serial()?)?;
    files::write(&out, to_pem(&[certificate])?.as_bytes(), files::PUBLIC)?;
    let (cluster, at) = (bundle.cluster(), out.display().to_string());
    let until = until(validity.until_s);
    let text = format!("{key} may issue for {cluster}, until {until}\n  home  {home}\n  {at}");
    let json = json!({
        "cluster": cluster.as_str(), "issuer": key.to_string(), "home": home.to_string(),
        "certificate": at, "until_s": validity.until_s,
    });
    Ok(Report { json, text })
}

fn svid(args: &SvidArgs) -> Result<Report, Fault> {
    let key = public_key(&args.key)?;
    let subject: Subject = args.who.parse()?;
    let secret = read_secret_file(&args.issuer)?;
    let at = args.issuer.with_extension("pem");
    let certificate = match read_pem(&at)?.as_slice() {
        [one] => one.clone(),
        _ => return Err(named(&at, Fault::malformed("an issuer has one certificate"))),
    };
    let issuer = Issuer::new(certificate, &secret).map_err(|fault| named(&at, fault))?;
    let out = out(args.out.as_deref(), &args.key, 2)?;
    let id = SpiffeId { cluster: issuer.cluster().clone(), subject };
    let mut validity = from_now(args.lasting)?;
    // What it begins earlier counts, too.
    if args.lasting / 1000 <= MAX_SVID_LIFETIME_S {
        validity.until_s = validity.until_s.min(validity.from_s + MAX_SVID_LIFETIME_S);
    }
    let chain = issuer.issue(&id, key, validity, serial()?)?;
    files::write(&out, to_pem(&chain)?.as_bytes(), files::PUBLIC)?;
    let at = out.display().to_string();
    let text = format!("{id}\n  key   {key}\n  until {}\n  {at}", until(validity.until_s));
    let json = json!({
        "id": id.to_string(), "key": key.to_string(), "svid": at, "until_s": validity.until_s,
    });
    Ok(Report { json, text })
}

fn tokens(args: &TokensArgs) -> Result<Report, Fault> {
    let home: Option<Home> = args.home.as_deref().map(str::parse).transpose()?;
    if home == Some(Home::Offline) {
        return Err(Fault::malformed("tokens are signed on a node: --home node/N"));
    }
    let bundle = read_bundle(&args.bundle)?;
    let sequence = bundle.sequence().saturating_add(1);
    let known = bundle.authorities().iter().find(|one| one.key == args.key).map(|one| one.home);
    if known == home {
        return Err(match home {
            Some(home) => Fault::Exists(format!("tokens of {home} count already")),
            None => Fault::not_found("no tokens that are signed with this key count"),
        });
    }
    let next = match home {
        Some(home) => bundle.with_authority(TokenAuthority { key: args.key, home })?,
        None => bundle.without_authority(args.key),
    };
    let next = next.numbered(sequence);
    files::write_durably(&args.bundle, next.to_json().as_bytes(), files::PUBLIC)?;
    let (cluster, at, key) = (next.cluster(), args.bundle.display().to_string(), args.key);
    let text = match home {
        Some(home) => {
            format!("tokens of {home} count in {cluster}, from bundle {sequence} on\n  {at}")
        }
        None => {
            format!("tokens by {key} count in {cluster} no more, from bundle {sequence} on\n  {at}")
        }
    };
    let json = json!({
        "cluster": cluster.as_str(), "key": key.to_string(), "home": home.map(|home| home.to_string()),
        "bundle": at, "sequence": sequence,
    });
    Ok(Report { json, text })
}

fn token(args: &TokenArgs) -> Result<Report, Fault> {
    let bundle = read_bundle(&args.bundle)?;
    let text = files::read_text(&args.file, MAX_TOKEN_BYTES as u64)?;
    let at = args.at.unwrap_or(now_ms() / 1000);
    let found = Token::verify(text.trim_end(), &bundle, &args.audience, at)
        .map_err(|refusal| named(&args.file, refusal.into()))?;
    let Validity { from_s, until_s } = found.validity;
    let text = format!(
        "{}\n  for    {}\n  until  {}",
        found.id,
        found.audiences.join(", "),
        until(until_s)
    );
    let json = json!({
        "id": found.id.to_string(), "audiences": found.audiences, "from_s": from_s, "until_s": until_s,
    });
    Ok(Report { json, text })
}

fn configure(args: &ConfigureArgs) -> Result<Report, Fault> {
    let (bundle, secret) = bundle_and_root(&args.bundle, &args.root)?;
    let before = match std::fs::symlink_metadata(&args.out) {
        Ok(_) => Some(read_configuration(&args.out)?),
        Err(_) => None,
    };
    // Another file is not replaced, nor another cluster's configuration. The root that has signed it may be gone.
    let before = before.map(|before| before.configuration().clone());
    if let Some(before) = before.as_ref().filter(|before| before.cluster != *bundle.cluster()) {
        let why = format!(
            "this is the configuration of {}, and not of {}",
            before.cluster,
            bundle.cluster()
        );
        return Err(named(&args.out, Fault::malformed(why)));
    }
    let last = before.as_ref().map_or(0, |before| before.number);
    let number = args.number.unwrap_or(last.saturating_add(1));
    if number <= last {
        let why =
            format!("it replaces a configuration with number {last}, and {number} is not greater");
        return Err(named(&args.out, Fault::malformed(why)));
    }
    let before = before.filter(|_| !args.anew);
    may_follow(args, number, before.as_ref()).map_err(|fault| named(&args.out, fault))?;
    let before = before.and_then(|before| before.voting);
    let (admit, remove) = (before.as_ref().map(|v| v.admit), before.as_ref().map(|v| v.remove));
    let known = before.map(|voting| voting.voters).unwrap_or_default();
    let mut voters = std::collections::BTreeMap::new();
    for voter in &args.voters {
        let Some((Ok(Peer::Node(node)), key)) =
            voter.split_once('=').map(|(node, key)| (node.parse(), key))
        else {
            return Err(Fault::malformed(format!("'{voter}' is no voter: node/N=KEY")));
        };
        // Whoever votes already goes on; of whoever does not, or not by this key, nothing counts that it has said.
        let key = public_key(key)?;
        let goes_on = known.get(&node).filter(|voter| voter.key == key);
        let voter = goes_on.copied().unwrap_or(Voter { key, since: number });
        if voters.insert(node, voter).is_some() {
            return Err(Fault::malformed(format!("node/{node} has one vote")));
        }
    }
    let voting = (!voters.is_empty()).then(|| Voting {
        admit: args.admit.or(admit).unwrap_or(voters.len() as u32 / 2 + 1),
        remove: args.remove.or(remove).unwrap_or(1),
        voters,
    });
    let key_exchange = match args.require_hybrid {
        true => KeyExchange::HybridOnly,
        false => KeyExchange::HybridPreferred,
    };
    let cluster = bundle.cluster().clone();
    let signed = Configuration { cluster, number, key_exchange, voting }.sign(&secret)?;
    signed.verify(&bundle, now_ms() / 1000)?;
    files::write(&args.out, signed.to_json().as_bytes(), files::PUBLIC)?;
    let (at, found) = (args.out.display().to_string(), signed.configuration());
    let text = format!("{}\n  {at}  give it to a node of the cluster", configuration_text(found));
    let json = json!({ "configuration": configuration_json(found), "file": at });
    Ok(Report { json, text })
}

/// Whether nothing is dropped by the way that held before.
fn may_follow(
    args: &ConfigureArgs,
    number: u64,
    before: Option<&Configuration>,
) -> Result<(), Fault> {
    let why = match before {
        _ if args.anew => return Ok(()),
        None if number > 1 => {
            "the configuration before it is not there: all votes that were cast would be forgotten, also those \
             against nodes. Bring it back, or begin --anew"
        }
        Some(before) if before.voting.is_some() && args.voters.is_empty() => {
            "the cluster votes, and this names no voter: name them all, or leave nodes to each operator with --anew"
        }
        Some(before) if before.key_exchange == KeyExchange::HybridOnly && !args.require_hybrid => {
            "the cluster requires the hybrid key exchange: say --require-hybrid again, or drop it with --anew"
        }
        _ => return Ok(()),
    };
    Err(Fault::malformed(why))
}

/// What a configuration says.
pub(super) fn configuration_text(configuration: &Configuration) -> String {
    let Configuration { cluster, number, key_exchange, voting } = configuration;
    let mut lines = vec![format!("configuration {number} of {cluster}")];
    lines.push(match key_exchange {
        KeyExchange::HybridOnly => "  keys        X25519MLKEM768 only".to_owned(),
        KeyExchange::HybridPreferred => "  keys        X25519MLKEM768, or X25519".to_owned(),
    });
    let Some(voting) = voting else {
        lines.push("  nodes       each operator's own list".to_owned());
        return lines.join("\n");
    };
    let Voting { voters, admit, remove } = voting;
    lines.push(format!("  let in by   {admit} of {} votes", voters.len()));
    lines.push(format!("  put out by  {remove} of {} votes", voters.len()));
    lines.extend(voters.keys().map(|node| format!("  voter       node/{node}")));
    lines.join("\n")
}

/// The same for programs.
pub(super) fn configuration_json(configuration: &Configuration) -> Value {
    let Configuration { cluster, number, key_exchange, voting } = configuration;
    let voting = voting.as_ref().map(|voting| {
        let voters = voting.voters.iter();
        let voters =
            voters.map(|(node, voter)| (format!("node/{node}"), voter.key.to_string().into()));
        let voters: serde_json::Map<String, Value> = voters.collect();
        json!({ "voters": voters, "admit": voting.admit, "remove": voting.remove })
    });
    json!({
        "cluster": cluster.as_str(), "number": number, "voting": voting,
        "hybrid_only": *key_exchange == KeyExchange::HybridOnly,
    })
}

pub(super) fn read_configuration(path: &Path) -> Result<Signed, Fault> {
    let text = files::read_text(path, MAX_CONFIGURATION_BYTES as u64)?;
    Signed::parse(&text).map_err(|fault| named(path, fault))
}

fn verify(args: &VerifyArgs) -> Result<Report, Fault> {
    let bundle = read_bundle(&args.bundle)?;
    let chain = read_pem(&args.file)?;
    let at = args.at.unwrap_or(now_ms() / 1000);
    let usage = match args.side {
        Side::Client => Usage::Client,
        Side::Server => Usage::Server,
    };
    let found = Identity::verify(&chain, &bundle, at, usage)
        .map_err(|refusal| named(&args.file, refusal.into()))?;
    let text = format!(
        "{}\n  key     {}\n  issuer  {}\n  until   {}",
        found.id,
        found.key,
        found.issuer,
        until(found.until_s)
    );
    Ok(Report { text, json: identity_json(&found) })
}

fn identity_json(identity: &Identity) -> Value {
    json!({
        "id": identity.id.to_string(), "key": identity.key.to_string(),
        "issuer": identity.issuer.to_string(), "from_s": identity.from_s,
        "until_s": identity.until_s,
    })
}

fn did(args: &DidArgs) -> Result<Report, Fault> {
    let document = did::document(public_key(&args.key)?);
    // Strings have a form in JSON.
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    Ok(Report { text, json: document })
}

pub(super) fn read_bundle(path: &Path) -> Result<Bundle, Fault> {
    let text = files::read_text(path, MAX_BUNDLE_BYTES as u64)?;
    Bundle::parse(&text).map_err(|fault| named(path, fault))
}

pub(super) fn read_pem(path: &Path) -> Result<Vec<Vec<u8>>, Fault> {
    let text = files::read_text(path, MAX_PEM_BYTES as u64)?;
    from_pem(&text).map_err(|fault| named(path, fault))
}

/// Where certificates go: beside the file of their key, unless somebody says where. Only a file of as
/// many certificates is replaced: an SVID by a newer one, and nobody's key.
fn out(named: Option<&Path>, key: &str, certificates: usize) -> Result<PathBuf, Fault> {
    let out = match named {
        Some(out) => out.to_path_buf(),
        None if !Path::new(key).exists() => {
            let why = "the key has no file: name the certificate's with --out";
            return Err(Fault::malformed(why));
        }
        None => Path::new(key).with_extension("pem"),
    };
    if std::fs::symlink_metadata(&out).is_ok_and(|found| found.is_file())
        && read_pem(&out).map_or(0, |found| found.len()) != certificates
    {
        let why = "there is another file, which is not replaced: name one with --out";
        return Err(Fault::Exists(format!("{}: {why}", out.display())));
    }
    Ok(out)
}

fn vacant(bundle: &Path) -> Result<(), Fault> {
    if std::fs::symlink_metadata(bundle).is_ok() {
        let at = bundle.display();
        return Err(Fault::Exists(format!("{at}: a cluster's bundle replaces no other file")));
    }
    Ok(())
}

fn from_now(lasting_ms: u64) -> Result<Validity, Fault> {
    let now_s = now_ms() / 1000;
    let until_s = now_s.saturating_add(lasting_ms / 1000);
    if until_s <= now_s {
        return Err(Fault::malformed("a certificate holds for a second at least"));
    }
    Ok(Validity { from_s: now_s.saturating_sub(SKEW_S), until_s })
}

fn serial() -> Result<Serial, Fault> {
    Ok(Serial(random()?))
}

fn until(until_s: u64) -> String {
    text::instant(until_s.saturating_mul(1000))
}
