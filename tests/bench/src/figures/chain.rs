//! Authority at rest: verifying three links, beside a token of the field; and what it takes to
//! make a delegation live and durable, beside the one synchronous write that it cannot do without.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use biscuit_auth::builder::{Algorithm, AuthorizerBuilder};
use biscuit_auth::{AuthorizerLimits, Biscuit, KeyPair, PublicKey};
use distos_abi::{Authority, ByteRange, CapId, Caveats, Fault, NodeId, ObjectId, Rights, VatName};
use distos_types::{Chain, HolderSecret, Root, kind};

use super::{Failure, Outcome};
use crate::node::{self, Holder};
use crate::null_capnp::null;
use crate::report::{Figure, time};
use crate::sample::{Pairs, quantile};

const PAIRS: usize = 2_000;
const REDEEMS: u32 = 300;
/// 2100 in seconds since the Unix epoch.
const LATER_S: u64 = 4_102_444_800;
const EPOCH: u32 = 1;

pub(super) fn all(_: &Path) -> Outcome {
    let mut figures = verify()?;
    figures.extend(redeem()?);
    Ok(figures)
}

/// Read on a range of bytes until 2100, passed on twice, each time with less.
fn chain() -> Result<(Vec<u8>, NodeId), Fault> {
    let secret = |seed| HolderSecret::from_seed([seed; 32]);
    let kernel = secret(9);
    let node = NodeId(kernel.key().0);
    let authority = |rights, end| Authority {
        rights,
        caveats: Caveats {
            expires_ms: LATER_S * 1000,
            range: ByteRange { start: 0, end },
            ..Caveats::NONE
        },
    };
    let both = Rights::READ.join(Rights::WRITE);
    let root = Root {
        node,
        key_epoch: EPOCH,
        vat: VatName::new("memory")?,
        kind: kind::REGION,
        object: ObjectId(7),
        cap: CapId(9),
        holder: secret(1).key(),
        authority: authority(both, 1 << 20),
        nonce: [0; 16],
    };
    let chain = Chain::issue(root, &kernel)
        .delegate(&secret(1), secret(2).key(), authority(both, 1 << 17), [1; 16])?
        .delegate(&secret(2), secret(3).key(), authority(Rights::READ, 1 << 16), [2; 16])?;
    Ok((chain.encode(), node))
}

/// The same facts as a token of three blocks.
fn token() -> Result<(Vec<u8>, PublicKey), Failure> {
    let root = KeyPair::new_with_algorithm(Algorithm::Ed25519);
    let before = r#"check if time($t), $t < 2100-01-01T00:00:00Z;"#;
    let first = Biscuit::builder()
        .code(format!(
            r#"region(7); right("read"); right("write"); check if at($b), $b < 1048576; {before}"#
        ))?
        .build(&root)?;
    let token = first
        .append(biscuit_auth::builder::BlockBuilder::new().code(format!(
            r#"check if operation($o), ["read", "write"].contains($o);
                   check if at($b), $b < 131072; {before}"#
        ))?)?
        .append(biscuit_auth::builder::BlockBuilder::new().code(format!(
            r#"check if operation("read"); check if at($b), $b < 65536; {before}"#
        ))?)?;
    Ok((token.to_vec()?, root.public()))
}

fn authorizer() -> Result<AuthorizerBuilder, Failure> {
    // The default ends an evaluation after a millisecond, which a busy machine takes for nothing.
    let limits = AuthorizerLimits { max_time: Duration::from_secs(10), ..Default::default() };
    Ok(AuthorizerBuilder::new()
        .time()
        .code(
            r#"operation("read"); at(4096);
               allow if region(7), operation($o), right($o); deny if true;"#,
        )?
        .set_limits(limits))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

fn verify() -> Outcome {
    let (chain, node) = chain()?;
    let (token, root) = token()?;
    let ours = || -> Result<(), Failure> {
        let chain = Chain::decode(&chain)?;
        chain.verify(|epoch| (epoch == EPOCH).then_some(node), now_ms())?;
        let range = ByteRange { start: 4096, end: 4097 };
        Ok(chain.authority().permits(Rights::READ, range, now_ms())?)
    };
    let peer = || -> Result<(), Failure> {
        let token = Biscuit::from(&token, root)?;
        authorizer()?.build(&token)?.authorize()?;
        Ok(())
    };
    let signatures = || -> Result<(), Failure> {
        Biscuit::from(&token, root)?;
        Ok(())
    };
    Pairs::take(PAIRS / 10, ours, peer)?;
    let pairs = Pairs::take(PAIRS, ours, peer)?;
    let bare = Pairs::take(PAIRS, ours, signatures)?;
    let (ours, peer) = pairs.medians();
    let (ours_then, signatures) = bare.medians();
    let note = format!(
        "beside its signatures alone, without its authorizer: {:.3} ({} ÷ {})",
        ours_then / signatures,
        time(ours_then),
        time(signatures),
    );
    let figure = Figure::of("chain", "verify a 3-link chain, p50", ours, peer)
        .beside("biscuit-auth, the same 3 blocks verified and authorised")
        .within(pairs.interval())
        .at_most(1.0)
        .noting(note);
    Ok(vec![figure])
}

/// A delegation that nobody used yet, presented at a vat of a real node: challenge, signature,
/// verification by the kernel, journal, reply.
fn redeem() -> Outcome {
    let node = node::boot(4096)?;
    node::on_one_thread(async {
        let operator = Holder::operator(&node)?;
        let chain = operator.chain("null")?;
        let lent = HolderSecret::from_seed([5; 32]);
        let connection = operator.connect("null").await?;
        let mut file = File::create(node.directory().join("beside"))?;
        let mut pairs = Pairs::default();
        for number in 0..REDEEMS {
            let mut nonce = [0; 16];
            nonce[..4].copy_from_slice(&number.to_le_bytes());
            let wanted = chain.authority();
            let fresh = chain.delegate(&operator.secret, lent.key(), wanted, nonce)?;
            let started = std::time::Instant::now();
            let live: null::Client = connection.restore(&fresh, &lent).await?;
            pairs.ours.push(started.elapsed().as_nanos() as u64);
            drop(live);
            let started = std::time::Instant::now();
            file.write_all(&[7; 4096])?;
            file.sync_data()?;
            pairs.peer.push(started.elapsed().as_nanos() as u64);
        }
        let (ours, peer) = pairs.medians();
        let p99 = |samples: &[u64]| time(quantile(&mut samples.to_vec(), 0.99));
        let figure = Figure::of("chain", "redeem a fresh delegation, durable, p50", ours, peer)
            .beside("one 4 KiB write and fdatasync")
            .within(pairs.interval())
            .noting(format!("p99: {} ÷ {}", p99(&pairs.ours), p99(&pairs.peer)));
        Ok(vec![figure])
    })
}
