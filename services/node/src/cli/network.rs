//! `network …` and `peers …`: this node in its cluster, and whom it lets in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use distos_abi::{Authority, Caveats, Fault, HolderKey, NodeId, Rights};
use distos_identity::{MAX_BUNDLE_BYTES, Peer};
use distos_membership::Signed;
use distos_schemas::network_capnp::{network, peer};
use distos_types::Chain;
use serde_json::{Value, json};

use super::cap::Ended;
use super::cap::public_key;
use super::cluster::{configuration_json, configuration_text, read_configuration, read_pem};
use super::holder::{Holder, call, named, random, read};
use super::joining::{
    AcceptArgs, ChallengeArgs, InviteArgs, PresentArgs, accept, challenge, invite, present,
};
use super::share::{Near, ShareArgs, share};
use super::text::{self, row};
use super::{Context, Report, cap, files, workload};

/// The entry of a capability file that these commands use.
pub(super) const ENTRY: &str = "network";

/// Commands about this node in its cluster.
#[derive(Subcommand)]
pub enum NetworkCommand {
    /// Who this node is in its cluster, which of its services are reached, and the keys to sign
    #[command(after_help = "Example:\n  distos network status --json | jq -r .key")]
    Status,
    /// Join a cluster with an SVID that an issuer has signed, or take a newer bundle
    #[command(after_help = "\
Example: where the issuer is, with the number and the key that `distos network status` shows here
  distos cluster svid node/1f95…/service/network KEY --issuer issuer.key --out network.pem
and then here
  distos network join network.pem --bundle bundle.json
From then on other nodes' issuers renew the SVID: name some with `distos peers add`.")]
    Join(JoinArgs),
    /// Invite a node into the cluster: for one key, for so long, once
    #[command(after_help = "\
Example: with the number and the key that `distos network status` shows on the node that is to join
  distos network invite node/1f95… KEY --at 10.0.0.7:7400
writes invitation.json, which opens nothing for whoever has another key. The address is this node's own, as
that one reaches it. If the node has not come in time, it is taken off the list again. By the node's TPM, in place
of its key: `distos network challenge --help`.")]
    Invite(InviteArgs),
    /// Challenge a node that is to be invited by the TPM that it has
    #[command(after_help = "\
Example: with the number that `distos network status` and the name that `distos attest identity` show on the node
that is to join
  distos network challenge node/1f95…                       # here: writes challenge.json
  distos network present challenge.json                     # there: writes request.json
  distos network invite --request request.json --tpm 000b… --image images/cluster.toml --at 10.0.0.7:7400   # here
  distos network accept invitation.json --root root.pub     # there
Each challenge is good for one invitation, which opens in that TPM alone.")]
    Challenge(ChallengeArgs),
    /// Answer a challenge of a node that is to invite this one, by the TPM
    #[command(after_help = "Example:\n  distos network present challenge.json")]
    Present(PresentArgs),
    /// Join the cluster of a node that has invited this one
    #[command(after_help = "\
Example:
  distos network accept invitation.json --root root.pub
The root is the cluster's, as its operator told you it is; name each of them, if it has several. Whoever
changes an invitation on its way can lead this node into another cluster, so without --root it is taken only
with --trust-first-use.")]
    Accept(AcceptArgs),
    /// Sign SVIDs for other nodes from now on, by a certificate of the cluster's root
    #[command(after_help = "\
Example: where the root is, with the number and the issuer's key that `distos network status` shows here
  distos cluster issuer ISSUER_KEY --home node/1f95… --out issuer.pem
and then here
  distos network certify issuer.pem")]
    Certify(CertifyArgs),
    /// Go by a configuration of the cluster that its root has signed, and tell the others
    #[command(after_help = "\
Example: where the root is
  distos cluster configure --voter node/1f95…=KEY --admit 1
and then here
  distos network configure configuration.json
An older one is refused. Where the cluster votes on its nodes, a voter is at once for those that are in its own
list; `distos peers list` shows who is for whom.")]
    Configure(ConfigureArgs),
    /// Change this node's key in the cluster for a new one; connections go on
    #[command(after_help = "\
Example:
  distos network rotate
Services change theirs with each SVID, by themselves. The issuer's key stays until the root certifies another.")]
    Rotate,
    /// Carry what this node hears of its cluster's configuration, votes and revocations to a store that nodes share, and back
    #[command(after_help = "\
Example: by a capability that can do this and nothing else
  distos image keygen share.key
  distos cap delegate DIR/operator/operator.cap --entry network --rights read,write --to share.pub --out share.cap
  distos network share --as share.cap --etcd https://10.0.0.1:2379 --etcd https://10.0.0.2:2379 \\
    --ca etcd-ca.pem --cert share.pem --key share-key.pem
It goes on until Ctrl-C, and when the node or the store is away. Nodes that do not reach one another hear of one
another that way, and whoever lost what they had heard. The store is believed nothing that nobody has signed who
may.")]
    Share(ShareArgs),
    /// Let whoever has a key be a tenant's agent: get SVIDs and tokens here, and pass that on
    #[command(after_help = "\
Example: for a tenant of which this node had not heard when it came into its cluster
  distos network agents red --to red.pub --out red-agents.cap
`distos tenant add` puts the same into the tenant's own file.")]
    Agents(AgentsArgs),
}

/// Arguments of `network join`.
#[derive(Args)]
pub struct JoinArgs {
    /// The SVID: a file of two certificates [default: the one that this node shows already]
    svid: Option<PathBuf>,
    /// The cluster's bundle
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
}

/// Arguments of `network certify`.
#[derive(Args)]
pub struct CertifyArgs {
    /// The issuer's certificate
    certificate: PathBuf,
}

/// Arguments of `network agents`.
#[derive(Args)]
pub struct AgentsArgs {
    /// The tenant
    tenant: String,
    /// The public key of whoever is to have it: its file, or the key itself
    #[arg(long, value_name = "PUBFILE")]
    to: String,
    /// Only over connections that are encrypted from the holder to the service, whatever passes them on
    #[arg(long)]
    end_to_end: bool,
    /// The capability file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Arguments of `network configure`.
#[derive(Args)]
pub struct ConfigureArgs {
    /// The configuration
    #[arg(default_value = "configuration.json")]
    configuration: PathBuf,
}

/// Commands about whom this node lets in.
#[derive(Subcommand)]
pub enum PeersCommand {
    /// Let a node with its services, or a tenant with its agents, in from now on
    #[command(after_help = "\
Examples:
  distos peers add node/1f95… --at 10.0.0.7:7400
  distos peers add tenant/red
The address is where the node's network service listens (`distos network status` there): without it this
node does not ask that one for SVIDs. A certificate of the cluster alone opens nothing. Where the cluster votes
on its nodes, this is this node's vote, which every node hears.")]
    Add(AddArgs),
    /// Close a peer's connections, let it in no more, and revoke what it holds here
    #[command(after_help = "\
Examples:
  distos peers remove tenant/red
  distos peers remove tenant/red --keep-capabilities
When it returns, the peer's connections are closed, nothing that it sent and that was not read will be, and
what a tenant was given here has no effect any more: its jobs end, and what it passed on ends too. Its
regions stay, for whoever is given them. A capability that it was given and has never used is not known to the
node: revoke its file with `distos cap revoke`. Where the cluster votes on its nodes, this is this node's vote
against one, too.")]
    Remove(RemoveArgs),
    /// Whom this node lets in
    #[command(after_help = "Example:\n  distos peers list")]
    List,
}

/// Arguments of `peers add`.
#[derive(Args)]
pub struct AddArgs {
    /// Whom: node/N or tenant/T
    #[arg(value_name = "PEER")]
    peer: Peer,
    /// Where its network service listens, as HOST:PORT in numbers
    #[arg(long = "at", value_name = "ADDRESS")]
    address: Option<SocketAddr>,
}

/// Arguments of `peers remove`.
#[derive(Args)]
pub struct RemoveArgs {
    /// Whom: node/N or tenant/T
    #[arg(value_name = "PEER")]
    peer: Peer,
    /// Close its connections only: what it holds goes on to work on this machine
    #[arg(long)]
    keep_capabilities: bool,
}

pub(super) async fn command(context: &Context, command: NetworkCommand) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let client: network::Client = holder.root(ENTRY).await?;
    match command {
        NetworkCommand::Status => {
            let answer = call(client.status_request()).await?;
            let json = read(|| status_json(answer.get()?.get_status()?))?;
            Ok(Report { text: status_text(&json), json })
        }
        NetworkCommand::Join(args) => {
            let bundle = files::read_text(&args.bundle, MAX_BUNDLE_BYTES as u64)?;
            let svid = args.svid.as_deref().map(|svid| pem(svid, 2, "an SVID is two certificates"));
            let chain = svid.transpose()?.unwrap_or_default();
            join(&client, &bundle, &chain).await
        }
        NetworkCommand::Invite(args) => invite(&client, &args).await,
        NetworkCommand::Accept(args) => accept(&holder, &client, &args).await,
        NetworkCommand::Challenge(args) => challenge(&client, &args).await,
        NetworkCommand::Present(args) => present(&holder, &client, &args).await,
        NetworkCommand::Rotate => {
            let answer = call(client.rotate_request()).await?;
            let key = read(|| Ok(key_text(answer.get()?.get_key()?)))?;
            Ok(Report { text: format!("this node's key is {key}"), json: json!({ "key": key }) })
        }
        NetworkCommand::Share(args) => share(context, Near::of(holder, client), &args).await,
        NetworkCommand::Configure(args) => configure(&client, &args).await,
        NetworkCommand::Agents(args) => agents(&holder, &client, &args).await,
        NetworkCommand::Certify(args) => {
            let chain = pem(&args.certificate, 1, "an issuer has one certificate")?;
            let mut request = client.certify_request();
            request.get().set_certificate(&chain[0]);
            call(request).await?;
            let text = "this node signs SVIDs for other nodes".to_owned();
            Ok(Report { text, json: json!({ "issues": true }) })
        }
    }
}

pub(super) async fn join(
    client: &network::Client,
    bundle: &str,
    chain: &[Vec<u8>],
) -> Result<Report, Fault> {
    let mut request = client.join_request();
    let mut asked = request.get();
    asked.set_bundle(bundle);
    let mut list = asked.init_chain(chain.len() as u32);
    for (index, certificate) in (0..).zip(chain) {
        list.set(index, certificate);
    }
    call(request).await?;
    let answer = call(client.status_request()).await?;
    let json = read(|| status_json(answer.get()?.get_status()?))?;
    let text = format!("this node is {}", json["id"].as_str().unwrap_or_default());
    Ok(Report { text, json })
}

/// The power to be a tenant's agent, delegated to whoever has `key`.
pub(super) async fn agents_chain(
    holder: &Holder,
    client: &network::Client,
    tenant: &str,
    (key, caveats): (HolderKey, Caveats),
) -> Result<Chain, Fault> {
    let mut request = client.agents_request();
    request.get().set_tenant(tenant);
    let answer = call(request).await?;
    let chain = read(|| Ok(Chain::decode(answer.get()?.get_chain()?)))??;
    let rights = Rights::READ.join(Rights::CREATE);
    chain.delegate(&holder.secret, key, Authority { rights, caveats }, random()?)
}

async fn agents(
    holder: &Holder,
    client: &network::Client,
    args: &AgentsArgs,
) -> Result<Report, Fault> {
    let key = public_key(&args.to)?;
    let caveats = Caveats { end_to_end: args.end_to_end, ..Caveats::NONE };
    let chain = agents_chain(holder, client, &args.tenant, (key, caveats)).await?;
    let file = holder.file_of(workload::ENTRY, chain);
    files::write(&args.out, file.to_text().as_bytes(), files::SECRET)?;
    let at = args.out.display().to_string();
    let text = format!("{key} may be an agent of {}\n  {at}", args.tenant);
    Ok(Report { text, json: json!({ "tenant": args.tenant, "key": key.to_string(), "cap": at }) })
}

async fn configure(client: &network::Client, args: &ConfigureArgs) -> Result<Report, Fault> {
    let signed = read_configuration(&args.configuration)?;
    let mut request = client.configure_request();
    request.get().set_configuration(signed.to_json());
    let answer = call(request).await.map_err(|fault| named(&args.configuration, fault))?;
    let (behind, out) = read(|| {
        let answer = answer.get()?;
        Ok((texts(answer.get_behind()?)?, texts(answer.get_out()?)?))
    })?;
    let peers = listed(client).await?;
    let configuration = signed.configuration();
    let mut text = configuration_text(configuration);
    for name in &out {
        let votes = peers.iter().find(|peer| peer["name"] == **name).map(votes_text);
        let votes = votes.unwrap_or_else(|| "nobody has voted".to_owned());
        text += &format!("\n  let in no more  {name}: {votes}");
    }
    if !behind.is_empty() {
        text += &format!("\n  not yet by  {}", behind.join(", "));
    }
    let json = json!({
        "configuration": configuration_json(configuration), "behind": behind, "out": out,
    });
    Ok(Report { text, json })
}

/// Whom this node knows of, as `peers list` shows them.
async fn listed(client: &network::Client) -> Result<Vec<Value>, Fault> {
    let answer = call(client.peers_request()).await?;
    read(|| answer.get()?.get_peers()?.iter().map(peer_json).collect())
}

/// How many are for a node, and how many against it.
fn votes_text(peer: &Value) -> String {
    let count = |key: &str| peer[key].as_u64().unwrap_or(0);
    let text = match (count("admit"), count("remove")) {
        (0, 0) => "nobody has voted".to_owned(),
        (admit, 0) => format!("{admit} for it"),
        (admit, remove) => format!("{admit} for it, {remove} against it"),
    };
    match peer["put_out"] == true {
        true => format!("{text}; put out here"),
        false => text,
    }
}

fn pem(path: &Path, count: usize, why: &str) -> Result<Vec<Vec<u8>>, Fault> {
    let chain = read_pem(path)?;
    if chain.len() != count {
        return Err(named(path, Fault::malformed(why)));
    }
    Ok(chain)
}

pub(super) async fn peers(context: &Context, command: PeersCommand) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let client: network::Client = holder.root(ENTRY).await?;
    match command {
        PeersCommand::Add(args) => {
            let mut request = client.add_peer_request();
            let mut asked = request.get().init_peer();
            asked.set_name(args.peer.to_string());
            if let Some(address) = args.address {
                asked.set_address(address.to_string());
            }
            let answer = call(request).await?;
            let behind = read(|| texts(answer.get()?.get_behind()?))?;
            let name = args.peer.to_string();
            let found = listed(&client).await?.into_iter().find(|peer| peer["name"] == *name);
            let is_in = found.as_ref().is_none_or(|peer| peer["let_in"] == true);
            let what = match (is_in, &found) {
                (false, Some(peer)) => {
                    format!("is not let in yet: {} (see `distos network status`)", votes_text(peer))
                }
                _ => "is let in".to_owned(),
            };
            let mut report = changed(&args.peer, &what, &behind);
            report.json["let_in"] = is_in.into();
            Ok(report)
        }
        PeersCommand::Remove(args) => {
            let mut request = client.remove_peer_request();
            request.get().set_name(args.peer.to_string());
            let answer = call(request).await?;
            let behind = read(|| texts(answer.get()?.get_behind()?))?;
            let mut report = changed(&args.peer, "is no longer let in", &behind);
            let revoked = match (&args.peer, args.keep_capabilities) {
                (Peer::Tenant(tenant), false) => cap::revoke_all(&holder, tenant.as_str()).await,
                _ => Ok(Ended::default()),
            };
            if !behind.is_empty() {
                let (behind, peer) = (behind.join(", "), &args.peer);
                let and = revoked.err().map_or(String::new(), |fault| format!("; and: {fault}"));
                return Err(Fault::unavailable(
                    1000,
                    format!(
                        "{peer} is off the list, and these have not said that they know: \
                         {behind} (see `distos network status` and `distos peers list`){and}"
                    ),
                ));
            }
            let ended = revoked?;
            if ended.given > 0 {
                report.text += &format!("\n{ended}");
            }
            report.json["revoked"] = json!({
                "given": ended.given, "derived": ended.derived, "elsewhere_ms": ended.elsewhere_ms,
            });
            Ok(report)
        }
        PeersCommand::List => {
            let json = json!({ "peers": listed(&client).await? });
            Ok(Report { text: peers_text(&json), json })
        }
    }
}

fn texts(list: capnp::text_list::Reader<'_>) -> capnp::Result<Vec<String>> {
    list.iter().map(|text| Ok(text?.to_str()?.to_owned())).collect()
}

fn changed(peer: &Peer, what: &str, behind: &[String]) -> Report {
    let mut text = format!("{peer} {what}");
    if !behind.is_empty() {
        text += &format!("\n  not yet by: {}", behind.join(", "));
    }
    Report { text, json: json!({ "peer": peer.to_string(), "behind": behind }) }
}

fn peer_json(peer: peer::Reader<'_>) -> capnp::Result<Value> {
    let address = peer.get_address()?.to_str()?;
    let heard_ms = Some(peer.get_heard_ms()).filter(|ms| *ms != u64::MAX);
    Ok(json!({
        "name": peer.get_name()?.to_str()?,
        "address": if address.is_empty() { Value::Null } else { address.into() },
        "invited_s": peer.get_invited_s(), "heard_ms": heard_ms, "suspect": peer.get_suspect(),
        "bundle": peer.get_bundle(), "let_in": peer.get_let_in(),
        "admit": peer.get_admit(), "remove": peer.get_remove(), "put_out": peer.get_put_out(),
        "standing": Some(peer.get_standing()?.to_str()?).filter(|standing| !standing.is_empty()),
    }))
}

/// Whether anybody votes on it.
fn votes(peer: &Value) -> bool {
    ["admit", "remove"].iter().any(|key| peer[*key].as_u64().is_some_and(|count| count > 0))
}

fn peers_text(json: &Value) -> String {
    let peers = json["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if peers.is_empty() {
        return "nobody: add peers with `distos peers add`".to_owned();
    }
    let votes = peers.iter().any(|peer| peer["let_in"] != true || votes(peer));
    let judged = peers.iter().any(|peer| peer["standing"].is_string());
    // Where nobody votes and nobody is verified there is nothing to say of it.
    let shown = [true, true, true, true, judged, votes, votes];
    let row = |cells: [&str; 7]| -> Vec<String> {
        let cells = cells.iter().zip(shown).filter(|(_, shown)| *shown);
        cells.map(|(cell, _)| (*cell).to_owned()).collect()
    };
    let mut rows = vec![row([
        "peer",
        "network service at",
        "heard",
        "invited until",
        "evidence",
        "let in",
        "votes",
    ])];
    for peer in peers {
        let name = peer["name"].as_str().unwrap_or_default();
        let until = match peer["invited_s"].as_u64().unwrap_or(0) {
            0 => "-".to_owned(),
            until_s => text::instant(until_s.saturating_mul(1000)),
        };
        let heard = match (peer["suspect"] == true, peer["heard_ms"].as_u64()) {
            _ if !name.starts_with("node/") => "-".to_owned(),
            (false, None) => "not yet".to_owned(),
            (true, None) => "never: suspect".to_owned(),
            (false, Some(ms)) => format!("{} s ago", ms / 1000),
            (true, Some(ms)) => format!("{} s ago: suspect", ms / 1000),
        };
        let let_in = if peer["let_in"] == true { "yes" } else { "no" };
        let address = peer["address"].as_str().unwrap_or("-");
        let said = match name.starts_with("node/") {
            true => votes_text(peer),
            false => "-".to_owned(),
        };
        let standing = peer["standing"].as_str().unwrap_or("-");
        rows.push(row([name, address, &heard, &until, standing, let_in, &said]));
    }
    text::table(&rows)
}

fn key_text(bytes: &[u8]) -> String {
    HolderKey::try_from(bytes).map_or_else(|_| String::new(), |key| key.to_string())
}

pub(super) fn status_json(
    status: distos_schemas::network_capnp::status::Reader<'_>,
) -> capnp::Result<Value> {
    let node: [u8; 32] = status.get_node()?.try_into().unwrap_or_default();
    let filled = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let services: capnp::Result<Vec<Value>> = status
        .get_services()?
        .iter()
        .map(|one| {
            Ok(json!({
                "service": one.get_service()?.to_str()?, "current": one.get_current(),
                "until_s": one.get_until_s(),
            }))
        })
        .collect();
    let configuration = match status.get_configuration()?.to_str()? {
        "" => Value::Null,
        text => Signed::parse(text).map_or(Value::Null, |s| configuration_json(s.configuration())),
    };
    Ok(json!({
        "configuration": configuration,
        "node": NodeId(node).to_string(), "key": key_text(status.get_key()?),
        "issuer_key": key_text(status.get_issuer_key()?),
        "token_key": hex::encode(status.get_token_key()?), "tokens": status.get_tokens(),
        "address": filled(status.get_address()?.to_str()?),
        "id": filled(status.get_id()?.to_str()?), "until_s": status.get_until_s(),
        "bundle": status.get_bundle(), "issues": status.get_issues(), "services": services?,
    }))
}

fn status_text(json: &Value) -> String {
    let text = |key: &str| json[key].as_str().unwrap_or("-").to_owned();
    let until = |of: &Value| match of["until_s"].as_u64().unwrap_or(0) {
        0 => "-".to_owned(),
        until_s => text::instant(until_s.saturating_mul(1000)),
    };
    let mut lines = vec![
        format!("node/{}", text("node")),
        match json["id"].as_str() {
            Some(id) => format!("  id          {id}\n  until       {}", until(json)),
            None => "  in no cluster: see `distos network join --help`".to_owned(),
        },
        format!("  key         {}", text("key")),
        format!("  issuer key  {}", text("issuer_key")),
        format!("  issues      {}", if json["issues"] == true { "yes" } else { "no" }),
        format!("  token key   {}", text("token_key")),
        format!(
            "  tokens      {}",
            if json["tokens"] == true {
                "count"
            } else {
                "do not count: see `distos cluster tokens --help`"
            }
        ),
        format!("  address     {}", text("address")),
    ];
    lines.extend(configured_text(json));
    let services = json["services"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !services.is_empty() {
        let mut rows = vec![row(["service", "lets in whom it should", "SVID until"])];
        for one in services {
            let name = one["service"].as_str().unwrap_or_default();
            let current = if one["current"] == true { "yes" } else { "not yet" };
            rows.push(row([name, current, &until(one)]));
        }
        lines.push(text::table(&rows));
    }
    lines.join("\n")
}

/// What the cluster's configuration says, and what it means for this node.
fn configured_text(status: &Value) -> Vec<String> {
    let configuration = &status["configuration"];
    let Some(number) = configuration["number"].as_u64() else { return Vec::new() };
    let mut lines = vec![format!("  configuration  {number}")];
    if configuration["hybrid_only"] == true {
        lines.push("    keys      X25519MLKEM768 only".to_owned());
    }
    let voting = &configuration["voting"];
    let Some(voters) = voting["voters"].as_object() else { return lines };
    let (admit, remove) = (&voting["admit"], &voting["remove"]);
    lines.push(format!(
        "    nodes     {admit} of {} votes let one in, {remove} put it out",
        voters.len()
    ));
    let me = format!("node/{}", status["node"].as_str().unwrap_or_default());
    lines.push(match voters.get(&me) {
        None => "    its vote  none".to_owned(),
        Some(key) if *key == status["issuer_key"] => "    its vote  one".to_owned(),
        Some(_) => {
            "    its vote  none: it is named with another key than its issuer key".to_owned()
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_in_no_cluster_says_what_to_do() {
        let json = json!({
            "node": "1f", "key": "ab", "issuer_key": "cd", "address": null, "id": null,
            "until_s": 0, "bundle": 0, "issues": false,
            "services": [{ "service": "memory", "current": false, "until_s": 0 }],
        });
        let text = status_text(&json);
        assert!(text.contains("network join") && text.contains("not yet"), "{text}");
        assert!(peers_text(&json!({ "peers": [] })).contains("peers add"));
    }

    /// Whoever looks who is let in sees there why a node's SVIDs are not renewed.
    #[test]
    fn what_a_nodes_evidence_is_worth_is_shown_where_anybody_has_judged_it() {
        let peer = |name: &str, standing: Value| {
            json!({
                "name": name, "address": "10.0.0.7:7400", "invited_s": 0, "heard_ms": 1000,
                "suspect": false, "let_in": true, "admit": 0, "remove": 0, "standing": standing,
            })
        };
        let nobody = peers_text(&json!({ "peers": [peer("node/1f", Value::Null)] }));
        assert!(!nobody.contains("evidence") && !nobody.contains("votes"), "{nobody}");
        let peers = [peer("node/1f", "stale".into()), peer("node/2f", Value::Null)];
        let judged = peers_text(&json!({ "peers": peers }));
        let lines: Vec<&str> = judged.lines().collect();
        assert!(lines[0].ends_with("evidence"), "{judged}");
        assert!(lines[1].ends_with("stale") && lines[2].trim_end().ends_with('-'), "{judged}");
    }
}
