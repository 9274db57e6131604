//! `cap show`, `attenuate`, `delegate`, `redeem`, `revoke` and `tree`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use capnp::capability::FromClientHook;
use clap::{ArgGroup, Args, Subcommand};
use distos_abi::{Authority, ByteRange, Caveats, Fault, HolderKey, Kind, Rights};
use distos_client::authority_of;
use distos_schemas::capability_capnp::{capability, info};
use distos_schemas::kernel_capnp::tree_node;
use distos_schemas::node_capnp::node;
use distos_types::{CapEntry, CapFile, Chain, HolderSecret, LinkFacts, kind, parse_key_file};
use serde_json::{Value, json};

use super::carry::Carrier;
use super::holder::{Holder, call, named, now_ms, pick, random, read, read_cap_file, read_secret};
use super::text::{self, PAGE_BYTES};
use super::{Context, Report, files, node as node_commands};

/// The most nodes of the forest that one `cap tree` shows.
const MAX_TREE: u32 = 10_000;

/// Commands about capabilities.
#[derive(Subcommand)]
pub enum CapCommand {
    /// What a capability file holds; needs no node
    #[command(after_help = "Example:\n  distos cap show red.cap")]
    Show {
        /// The capability file
        file: PathBuf,
    },
    /// Make a weaker capability for oneself; needs no node
    #[command(
        after_help = "Example:\n  distos cap attenuate books.cap --as red.cap --rights read -o read-only.cap"
    )]
    Attenuate(AttenuateArgs),
    /// Make a weaker capability for another key; needs no node
    #[command(after_help = "\
Example:
  distos cap delegate books.cap --as red.cap --to blue.pub --rights read --page 0 --for 1m -o page.cap")]
    Delegate(DelegateArgs),
    /// Turn a capability file into a live capability and show what the service says of it
    #[command(after_help = "Example:\n  distos cap redeem page.cap --as blue.cap")]
    Redeem(FileArgs),
    /// End a delegation and all that was derived from it
    #[command(after_help = "\
Examples:
  distos cap revoke page.cap --as red.cap
  distos cap revoke page.cap --as red.cap --through agents-at-another-node.cap
Whoever signed any link of the chain may revoke that link; a holder may give up its own. With --through the
revocation is signed and left with another node of the cluster, for when the home of the capability is not reached:
it is carried there by whichever node reaches it, for thirty days at most.")]
    Revoke(RevokeArgs),
    /// Who holds what, derived from what
    #[command(after_help = "Examples:\n  distos cap tree --all\n  distos cap tree --tenant red")]
    Tree {
        /// Only this tenant's capabilities
        #[arg(long, value_name = "NAME", conflicts_with = "all")]
        tenant: Option<String>,
        /// Every tenant's
        #[arg(long)]
        all: bool,
    },
}

/// A capability file, and which of its entries.
#[derive(Args)]
pub struct FileArgs {
    /// The capability file
    file: PathBuf,
    /// Which capability of the file [default: the only one]
    #[arg(long, value_name = "ENTRY")]
    entry: Option<String>,
}

/// Arguments of `cap revoke`.
#[derive(Args)]
pub struct RevokeArgs {
    #[command(flatten)]
    from: FileArgs,
    /// Leave it with the node of this file's capability to its network service, or to a tenant's agents there
    #[arg(long, value_name = "FILE")]
    through: Option<PathBuf>,
}

/// What a weaker capability may do.
#[derive(Args, Clone, Default)]
#[command(group = ArgGroup::new("reach").args(["page", "range"]))]
pub struct Weaker {
    /// Rights, such as read,write [default: all that the capability has]
    #[arg(long, value_parser = parse_rights, value_name = "RIGHTS")]
    rights: Option<Rights>,
    /// Only this page of 64 KiB, from 0
    #[arg(long, value_name = "N")]
    page: Option<u64>,
    /// Only these bytes, up to but not including END
    #[arg(long, value_parser = text::parse_range, value_name = "START..END")]
    range: Option<ByteRange>,
    /// Only for this long
    #[arg(long = "for", value_parser = text::parse_span_ms, value_name = "TIME")]
    lasting: Option<u64>,
    /// Only over connections that are encrypted from the holder to the service, whatever passes them on
    #[arg(long)]
    end_to_end: bool,
}

/// Arguments of `cap attenuate`.
#[derive(Args)]
pub struct AttenuateArgs {
    #[command(flatten)]
    from: FileArgs,
    #[command(flatten)]
    weaker: Weaker,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `cap delegate`.
#[derive(Args)]
pub struct DelegateArgs {
    #[command(flatten)]
    from: FileArgs,
    /// For whom: a public key file, or 64 hexadecimal digits
    #[arg(long, value_name = "KEY")]
    to: String,
    #[command(flatten)]
    weaker: Weaker,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

fn parse_rights(text: &str) -> Result<Rights, String> {
    Rights::parse(text).map_err(|fault| fault.to_string())
}

impl Weaker {
    /// Read-only access to one page for a time.
    pub fn page_for(page: u64, lasting_ms: u64) -> Weaker {
        Weaker {
            rights: Some(Rights::READ),
            page: Some(page),
            range: None,
            lasting: Some(lasting_ms),
            end_to_end: false,
        }
    }

    /// The authority to ask for, out of what there is.
    fn wanted(&self, has: Authority, now_ms: u64) -> Result<Authority, Fault> {
        let page = |n: u64| {
            let start = n.checked_mul(PAGE_BYTES);
            let range = start.and_then(|s| ByteRange::at(s, PAGE_BYTES));
            range.ok_or_else(|| Fault::malformed(format!("there is no page {n}")))
        };
        let range = match (self.page, self.range) {
            (Some(n), _) => page(n)?,
            (None, Some(range)) => range,
            (None, None) => ByteRange::WHOLE,
        };
        let expires_ms = self.lasting.map_or(u64::MAX, |ms| now_ms.saturating_add(ms));
        let end_to_end = self.end_to_end;
        let caveats = Caveats { range, expires_ms, end_to_end, ..Caveats::NONE };
        Ok(Authority { rights: self.rights.unwrap_or(has.rights), caveats })
    }
}

pub(super) async fn command(context: &Context, command: CapCommand) -> Result<Report, Fault> {
    match command {
        CapCommand::Show { file } => show(&file),
        CapCommand::Attenuate(args) => {
            let secret = signer(context, &args.from.file)?;
            derive(&args.from, &secret, secret.key(), &args.weaker, &args.out)
        }
        CapCommand::Delegate(args) => {
            let secret = signer(context, &args.from.file)?;
            let to = public_key(&args.to)?;
            derive(&args.from, &secret, to, &args.weaker, &args.out)
        }
        CapCommand::Redeem(args) => redeem_command(context, &args).await,
        CapCommand::Revoke(args) => revoke_command(context, &args).await,
        CapCommand::Tree { tenant, all } => tree(context, tenant, all).await,
    }
}

/// The key that signs: that of `--as`, else the one beside the capability file itself.
fn signer(context: &Context, file: &Path) -> Result<HolderSecret, Fault> {
    read_secret(context.acting().unwrap_or(file))
}

/// A holder's public key: the key itself in hexadecimal, or the file that it is in.
pub fn public_key(text: &str) -> Result<HolderKey, Fault> {
    if let Ok(bytes) = hex::decode(text)
        && let Ok(key) = HolderKey::try_from(bytes.as_slice())
    {
        return Ok(key);
    }
    let path = Path::new(text);
    parse_key_file(&files::read_text(path, 4096)?).map_err(|f| named(path, f))
}

fn show(path: &Path) -> Result<Report, Fault> {
    let file = read_cap_file(path)?;
    let now = now_ms();
    let entries: Vec<Value> = file.entries.iter().map(entry_json).collect();
    let shown: Vec<String> = file.entries.iter().map(|e| entry_text(e, now)).collect();
    let text = format!("node {}\n\n{}", file.node, shown.join("\n\n"));
    Ok(Report { json: json!({ "node": file.node.to_string(), "entries": entries }), text })
}

fn entry_json(entry: &CapEntry) -> Value {
    let root = entry.chain.root();
    let links: Vec<Value> = entry.chain.links().iter().map(link_json).collect();
    json!({
        "name": entry.name, "kind": kind::name(root.kind), "vat": root.vat.as_str(),
        "object": root.object.0, "key_epoch": root.key_epoch,
        "holder": entry.chain.holder().to_string(),
        "authority": text::authority_json(entry.chain.authority()), "links": links,
    })
}

fn link_json(link: &LinkFacts) -> Value {
    json!({
        "hash": link.hash.to_string(), "issuer": link.issuer.to_string(),
        "holder": link.holder.to_string(), "authority": text::authority_json(link.authority),
    })
}

fn entry_text(entry: &CapEntry, now_ms: u64) -> String {
    let (root, authority) = (entry.chain.root(), entry.chain.authority());
    let mut out = format!(
        "[{}] {} {} at {}\n  may     {}\n  under   {}\n  expires {}\n  holder  {}",
        entry.name,
        kind::name(root.kind),
        root.object,
        root.vat,
        authority.rights,
        text::caveats(Caveats { expires_ms: u64::MAX, ..authority.caveats }, now_ms),
        text::expiry(authority.caveats.expires_ms, now_ms),
        entry.chain.holder(),
    );
    for (number, link) in entry.chain.links().iter().enumerate() {
        let issuer = if number == 0 { "the node".to_owned() } else { short(link.issuer) };
        out += &format!(
            "\n  link {} {}…  {issuer} gave {}: {}",
            number + 1,
            text::short(&link.hash.to_string()),
            short(link.holder),
            link.authority.rights,
        );
    }
    out
}

fn short(key: HolderKey) -> String {
    format!("{}…", text::short(&key.to_string()))
}

fn derive(
    from: &FileArgs,
    secret: &HolderSecret,
    to: HolderKey,
    weaker: &Weaker,
    out: &Path,
) -> Result<Report, Fault> {
    let file = read_cap_file(&from.file)?;
    let made = delegate(&file, from.entry.as_deref(), secret, to, weaker)?;
    if out.exists() {
        return Err(Fault::Exists(format!("{}: choose another --out", out.display())));
    }
    files::write(out, made.to_text().as_bytes(), files::SECRET)?;
    let entry = pick(&made, None)?;
    let text = format!("{}\n{}", out.display(), entry_text(entry, now_ms()));
    let mut json = entry_json(entry);
    json["out"] = json!(out.display().to_string());
    Ok(Report { json, text })
}

/// The one capability of a file that holds one.
pub fn only(file: &CapFile) -> Result<&CapEntry, Fault> {
    pick(file, None)
}

/// A capability file for `to` with one weaker capability out of `file`. Needs no node.
pub fn delegate(
    file: &CapFile,
    entry: Option<&str>,
    secret: &HolderSecret,
    to: HolderKey,
    weaker: &Weaker,
) -> Result<CapFile, Fault> {
    let entry = pick(file, entry)?;
    let wanted = weaker.wanted(entry.chain.authority(), now_ms())?;
    let chain = entry.chain.delegate(secret, to, wanted, random()?)?;
    let entries = vec![CapEntry { name: entry.name.clone(), chain }];
    Ok(CapFile { node: file.node, sockets: file.sockets.clone(), entries })
}

async fn redeem_command(context: &Context, args: &FileArgs) -> Result<Report, Fault> {
    let file = read_cap_file(&args.file)?;
    let entry = pick(&file, args.entry.as_deref())?;
    let holder = context.holder()?;
    let live: capability::Client = holder.restore(&entry.chain).await?;
    let described = describe(&live).await?;
    Ok(Report { text: described.text(now_ms()), json: described.json() })
}

/// What a service says about a live capability.
pub struct Described {
    kind: String,
    object: u64,
    vat: String,
    authority: Authority,
    tenant: u32,
    depth: u8,
    cap_id: u64,
}

impl Described {
    /// What it allows.
    pub fn authority(&self) -> Authority {
        self.authority
    }

    fn of(info: info::Reader<'_>) -> capnp::Result<Described> {
        Ok(Described {
            kind: info.get_kind()?.to_str()?.to_owned(),
            object: info.get_object(),
            vat: info.get_vat()?.to_str()?.to_owned(),
            authority: authority_of(info.get_rights(), info.get_caveats()?),
            tenant: info.get_tenant(),
            depth: info.get_depth(),
            cap_id: info.get_cap_id(),
        })
    }

    fn json(&self) -> Value {
        json!({
            "kind": self.kind, "object": self.object, "vat": self.vat, "tenant": self.tenant,
            "depth": self.depth, "cap_id": self.cap_id,
            "authority": text::authority_json(self.authority),
        })
    }

    /// For people.
    pub fn text(&self, now_ms: u64) -> String {
        format!(
            "capability {} (depth {}): {} {} at {}, tenant {}\n  may   {}\n  under {}",
            self.cap_id,
            self.depth,
            self.kind,
            self.object,
            self.vat,
            self.tenant,
            self.authority.rights,
            text::caveats(self.authority.caveats, now_ms),
        )
    }
}

/// Asks a live capability about itself.
pub async fn describe(live: &capability::Client) -> Result<Described, Fault> {
    let answer = call(live.describe_request()).await?;
    read(|| Described::of(answer.get()?.get_info()?))
}

async fn revoke_command(context: &Context, args: &RevokeArgs) -> Result<Report, Fault> {
    let file = read_cap_file(&args.from.file)?;
    let holder = context.holder()?;
    let carrier = match &args.through {
        Some(path) => Some(Carrier::open(path).await?),
        None => None,
    };
    let chosen: Vec<&CapEntry> = match &args.from.entry {
        Some(name) => vec![pick(&file, Some(name))?],
        None => file.entries.iter().collect(),
    };
    let (mut lines, mut all) = (Vec::new(), Vec::new());
    for entry in chosen {
        if let Some(carrier) = &carrier {
            let (text, json) = carrier.leave(entry, &holder.secret).await?;
            lines.push(text);
            all.push(json);
            continue;
        }
        let revoked = revoke(&holder, &entry.chain).await?;
        lines.push(format!("[{}] {}", entry.name, revoked.text()));
        all.push(json!({
            "entry": entry.name, "micros": revoked.micros, "descendants": revoked.descendants,
            "elsewhere_ms": revoked.elsewhere_ms,
        }));
    }
    Ok(Report { json: Value::Array(all), text: lines.join("\n") })
}

/// What a revocation did.
pub struct Revoked {
    /// From the command to quiescence.
    pub micros: u64,
    /// How many derived capabilities ended with it.
    pub descendants: u64,
    /// Within which time whoever holds a lease by it, and has not said that it knows, stops.
    pub elsewhere_ms: u32,
}

impl Revoked {
    /// For people.
    pub fn text(&self) -> String {
        format!("{}{}", self.here(), later(self.elsewhere_ms))
    }

    /// The same of this node alone.
    pub fn here(&self) -> String {
        let took = text::micros(self.micros);
        format!("revoked in {took}, together with {} derived from it", self.descendants)
    }
}

/// That somebody who was not heard has a lease for a while.
fn later(elsewhere_ms: u32) -> String {
    match elsewhere_ms {
        0 => String::new(),
        ms => format!(
            "; what runs by leases that were not heard of ends within {:.1} s",
            f64::from(ms) / 1000.0
        ),
    }
}

/// What `holder` can end of a chain.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    /// The link after the first `prefix` links, which `holder` signed.
    Link { prefix: usize },
    /// The whole: it is its last holder.
    Own,
}

fn reach(links: &[LinkFacts], holder: HolderKey) -> Option<Reach> {
    let signed = (1..links.len()).rev().find(|n| links[n - 1].holder == holder);
    let own = links.last().is_some_and(|l| l.holder == holder);
    signed.map(|prefix| Reach::Link { prefix }).or(own.then_some(Reach::Own))
}

/// Ends the delegation in `chain`, as whoever signed it or holds it. When this returns, no use of
/// it or of anything derived from it takes effect (C2).
pub async fn revoke(holder: &Holder, chain: &Chain) -> Result<Revoked, Fault> {
    let links = chain.links();
    let answer = match reach(&links, holder.secret.key()) {
        Some(Reach::Link { prefix }) => {
            let link = &links[prefix];
            let ancestor: capability::Client = holder.restore(&chain.prefix(prefix)).await?;
            let mut request = ancestor.revoke_link_request();
            request.get().set_link(&link.hash.0);
            request.get().set_expires_ms(link.authority.caveats.expires_ms);
            let answer = call(request).await?;
            read(|| {
                let answer = answer.get()?;
                Ok((answer.get_micros(), answer.get_descendants(), answer.get_elsewhere_ms()))
            })?
        }
        Some(Reach::Own) => {
            let own: capability::Client = holder.restore(chain).await?;
            let answer = call(own.cast_to::<capability::Client>().revoke_request()).await?;
            read(|| {
                let answer = answer.get()?;
                Ok((answer.get_micros(), answer.get_descendants(), answer.get_elsewhere_ms()))
            })?
        }
        None => {
            return Err(Fault::Unauthenticated(format!(
                "key {} signed no link of this capability: act as one who did (--as FILE)",
                short(holder.secret.key())
            )));
        }
    };
    let (micros, descendants, elsewhere_ms) = answer;
    Ok(Revoked { micros, descendants, elsewhere_ms })
}

/// What a tenant had been given, and no longer has.
#[derive(Default)]
pub struct Ended {
    /// Capabilities that were given to it.
    pub given: usize,
    /// What was derived from those.
    pub derived: u64,
    /// Within which time whoever holds a lease by them, and has not said that it knows, stops.
    pub elsewhere_ms: u32,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revoked what it was given: {} capabilities", self.given)?;
        write!(f, ", together with {} derived from them", self.derived)?;
        f.write_str(&later(self.elsewhere_ms))
    }
}

/// How often it is looked whether a tenant has something left.
const ROUNDS: usize = 8;

/// Ends what `holder`, an operator, has given to a tenant and the node knows of. When this returns, no use
/// of it or of anything derived from it takes effect (C2). Nothing if there is no such tenant here.
///
/// # Errors
/// [`Fault::Unauthenticated`] if something was given by somebody else, under whom `holder` has no capability;
/// [`Fault::Unavailable`] if the tenant goes on to restore what it was given.
pub async fn revoke_all(holder: &Holder, tenant: &str) -> Result<Ended, Fault> {
    let client: node::Client = holder.root("node").await?;
    let tenants = node_commands::tenants(&client).await?;
    let id = tenants.iter().find(|t| t["name"] == tenant).and_then(|t| t["id"].as_u64());
    let mut ended = Ended::default();
    let Some(id) = id.and_then(|id| u32::try_from(id).ok()) else { return Ok(ended) };
    // A tenant that is busy may restore another one meanwhile.
    for _ in 0..ROUNDS {
        let mut request = client.tree_request();
        request.get().set_max(MAX_TREE);
        request.get().set_tenant(id);
        let answer = call(request).await?;
        let given = read(|| given(answer.get()?.get_nodes()?))?;
        if given.is_empty() {
            return Ok(ended);
        }
        let mut kept = None;
        for one in given {
            match revoke_given(holder, &one).await {
                Ok((derived, elsewhere_ms)) => {
                    ended.given += 1;
                    ended.derived += derived;
                    ended.elsewhere_ms = ended.elsewhere_ms.max(elsewhere_ms);
                }
                // What can be ended is, whatever cannot.
                Err(fault) => kept = kept.or(Some(fault)),
            }
        }
        if let Some(fault) = kept {
            return Err(fault);
        }
    }
    let why = format!("{tenant} still has something after {ROUNDS} rounds: run this again");
    Err(Fault::unavailable(0, why))
}

/// Ends one; how many were derived from it, and within which time it has ended elsewhere.
async fn revoke_given(holder: &Holder, given: &Given) -> Result<(u64, u32), Fault> {
    let Given { vat, kind, link, expires_ms } = given;
    let at = |entry: &&CapEntry| entry.chain.root().vat.as_str() == *vat;
    let mut here = holder.file.entries.iter().filter(at);
    // What was minted below a root object is of another kind than that.
    let own = here.clone().find(|entry| entry.chain.root().kind == *kind).or_else(|| here.next());
    let own = own.ok_or_else(|| {
        Fault::Unauthenticated(format!(
            "somebody else has given it a capability at '{vat}': revoke that as whoever did"
        ))
    })?;
    let root: capability::Client = holder.root(&own.name).await?;
    let mut request = root.revoke_link_request();
    request.get().set_link(link);
    request.get().set_expires_ms(*expires_ms);
    let answer = call(request).await?;
    read(|| Ok((answer.get()?.get_descendants(), answer.get()?.get_elsewhere_ms())))
}

/// A capability that was given to a tenant.
struct Given {
    vat: String,
    kind: Kind,
    link: Vec<u8>,
    expires_ms: u64,
}

/// Of a tenant's capabilities those that were not derived from another of its own.
fn given(nodes: capnp::struct_list::Reader<'_, tree_node::Owned>) -> capnp::Result<Vec<Given>> {
    let own: BTreeSet<u64> = nodes.iter().map(|node| node.get_cap_id()).collect();
    let mut given = Vec::new();
    for node in nodes.iter().filter(|node| !own.contains(&node.get_parent())) {
        let link = node.get_link()?.to_vec();
        if !link.is_empty() {
            given.push(Given {
                vat: node.get_vat()?.to_str()?.to_owned(),
                kind: Kind(node.get_kind()),
                link,
                expires_ms: node.get_caveats()?.get_expires_ms(),
            });
        }
    }
    Ok(given)
}

async fn tree(context: &Context, tenant: Option<String>, all: bool) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let client: node::Client = holder.root("node").await?;
    let tenants = node_commands::tenants(&client).await?;
    let mut request = client.tree_request();
    request.get().set_max(MAX_TREE);
    match &tenant {
        Some(name) => {
            let id = tenants.iter().find(|t| t["name"] == *name).and_then(|t| t["id"].as_u64());
            let id = id.ok_or_else(|| Fault::not_found(format!("tenant '{name}'")))?;
            request.get().set_tenant(u32::try_from(id).map_err(Fault::internal)?);
        }
        None => request.get().set_all(all),
    }
    let answer = call(request).await?;
    let (nodes, truncated) = read(|| {
        let answer = answer.get()?;
        let nodes: capnp::Result<Vec<Value>> = answer.get_nodes()?.iter().map(node_json).collect();
        Ok((nodes?, answer.get_truncated()))
    })?;
    let mut text = tree_text(&nodes, &tenants);
    if truncated {
        text += &format!("\n… and more than the {MAX_TREE} shown");
    }
    Ok(Report { json: json!({ "nodes": nodes, "truncated": truncated }), text })
}

fn node_json(node: tree_node::Reader<'_>) -> capnp::Result<Value> {
    let authority = authority_of(node.get_rights(), node.get_caveats()?);
    Ok(json!({
        "cap_id": node.get_cap_id(), "parent": node.get_parent(), "vat": node.get_vat()?.to_str()?,
        "kind": kind::name(Kind(node.get_kind())), "object": node.get_object(),
        "rights": authority.rights.to_string(), "authority": text::authority_json(authority),
        "conditions": text::caveats(authority.caveats, now_ms()),
        "tenant": node.get_tenant(), "holder": hex::encode(node.get_holder()?),
        "link": hex::encode(node.get_link()?), "durable": node.get_durable(),
    }))
}

/// The forest with each capability below the one that it was derived from.
fn tree_text(nodes: &[Value], tenants: &[Value]) -> String {
    let shown: Vec<u64> = nodes.iter().filter_map(|n| n["cap_id"].as_u64()).collect();
    let is_root = |n: &&Value| n["parent"].as_u64().is_none_or(|p| p == 0 || !shown.contains(&p));
    // Children are pushed behind, so a stack in reverse keeps the order of the answer.
    let mut open: Vec<(usize, &Value)> = nodes.iter().filter(is_root).map(|n| (0, n)).collect();
    open.reverse();
    let mut lines = Vec::new();
    while let Some((depth, node)) = open.pop() {
        lines.push(format!("{}{}", "  ".repeat(depth), node_text(node, tenants)));
        let below: Vec<_> =
            nodes.iter().filter(|n| n["parent"] == node["cap_id"] && n["parent"] != 0).collect();
        open.extend(below.into_iter().rev().map(|n| (depth + 1, n)));
        if lines.len() > nodes.len() {
            break;
        }
    }
    lines.join("\n")
}

fn node_text(node: &Value, tenants: &[Value]) -> String {
    let tenant =
        tenants.iter().find(|t| t["id"] == node["tenant"]).and_then(|t| t["name"].as_str());
    let holder = node["holder"].as_str().unwrap_or_default();
    let holder = match (holder.is_empty(), tenants.iter().find(|t| t["holder"] == *holder)) {
        (true, _) => "a service".to_owned(),
        (false, Some(t)) => t["name"].as_str().unwrap_or_default().to_owned(),
        (false, None) => format!("{}…", text::short(holder)),
    };
    format!(
        "{} {}/{} {}  {}  {}  held by {holder}, charged to {}{}",
        node["cap_id"],
        node["vat"].as_str().unwrap_or_default(),
        node["kind"].as_str().unwrap_or_default(),
        node["object"],
        node["rights"].as_str().unwrap_or_default(),
        node["conditions"].as_str().unwrap_or_default(),
        tenant.unwrap_or("the node"),
        if node["durable"] == true { "" } else { "  (this session)" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_abi::{CapId, NodeId, ObjectId, VatName};
    use distos_types::Root;

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    /// A region of Red's, whose key is of seed 1.
    fn region() -> CapFile {
        let kernel = secret(9);
        let root = Root {
            node: NodeId(kernel.key().0),
            key_epoch: 1,
            vat: VatName::new("memory").unwrap(),
            kind: kind::REGION,
            object: ObjectId(4),
            cap: CapId(1),
            holder: secret(1).key(),
            authority: Authority {
                rights: Rights::READ.join(Rights::WRITE),
                caveats: Caveats::NONE,
            },
            nonce: [0; 16],
        };
        let node = root.node;
        let entries = vec![CapEntry { name: "region".into(), chain: Chain::issue(root, &kernel) }];
        CapFile { node, sockets: None, entries }
    }

    fn delegated(to: u8) -> CapFile {
        let weaker = Weaker::page_for(2, 60_000);
        delegate(&region(), None, &secret(1), secret(to).key(), &weaker).unwrap()
    }

    #[test]
    fn a_delegated_page_is_that_page_for_that_time_and_read_only() {
        let file = delegated(2);
        let authority = file.entries[0].chain.authority();
        assert_eq!(authority.rights, Rights::READ);
        assert_eq!(authority.caveats.range, ByteRange { start: 131_072, end: 196_608 });
        assert!(authority.caveats.expires_ms <= now_ms() + 60_000);
        let text = entry_text(&file.entries[0], authority.caveats.expires_ms - 59_500);
        assert!(
            text.contains("page 2") && text.contains("link 2") && text.contains("in 59 s"),
            "{text}"
        );
        let stolen = delegate(&file, None, &secret(1), secret(3).key(), &Weaker::default());
        assert_eq!(stolen.unwrap_err().code(), 22);
        let more = Weaker { rights: Some(Rights::WRITE), ..Weaker::default() };
        let more = delegate(&file, None, &secret(2), secret(3).key(), &more);
        assert_eq!(more.unwrap_err(), Fault::denied(Rights::WRITE));
        assert!(Weaker { page: Some(u64::MAX), ..Weaker::default() }.wanted(authority, 0).is_err());
    }

    #[test]
    fn a_revoker_ends_what_it_signed_and_nobody_else_can() {
        let links = delegated(2).entries[0].chain.links();
        assert_eq!(reach(&links, secret(1).key()), Some(Reach::Link { prefix: 1 }));
        assert_eq!(reach(&links, secret(2).key()), Some(Reach::Own));
        assert_eq!(reach(&links, secret(3).key()), None);
        // One that Red narrowed for itself before it passed it on.
        let own = delegated(1);
        let passed = delegate(&own, None, &secret(1), secret(2).key(), &Weaker::default()).unwrap();
        let links = passed.entries[0].chain.links();
        assert_eq!(reach(&links, secret(1).key()), Some(Reach::Link { prefix: 2 }));
    }

    #[test]
    fn the_first_links_of_a_chain_are_the_chain_that_was_delegated() {
        let own = delegated(1);
        let passed = delegate(&own, None, &secret(1), secret(2).key(), &Weaker::default()).unwrap();
        let chain = &passed.entries[0].chain;
        assert_eq!(chain.prefix(2), own.entries[0].chain);
        assert_eq!(chain.prefix(1), region().entries[0].chain);
    }

    #[test]
    fn a_key_is_digits_or_a_file_and_never_a_secret() {
        let key = secret(1).key();
        assert_eq!(public_key(&key.to_string()).unwrap(), key);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, distos_types::key_file_text(key)).unwrap();
        assert_eq!(public_key(path.to_str().unwrap()).unwrap(), key);
        std::fs::write(&path, secret(1).to_file_text().as_bytes()).unwrap();
        assert_eq!(public_key(path.to_str().unwrap()).unwrap_err().code(), 16);
    }

    #[test]
    fn a_tree_shows_each_capability_below_its_parent() {
        let node = |id: u64, parent: u64| json!({ "cap_id": id, "parent": parent, "tenant": 1, "holder": "" });
        let text = tree_text(&[node(1, 0), node(3, 2), node(2, 1), node(4, 0), node(6, 5)], &[]);
        let starts: Vec<&str> = text.lines().map(|l| l.split(" /").next().unwrap()).collect();
        assert_eq!(starts, ["1", "  2", "    3", "4", "6"]);
    }
}
