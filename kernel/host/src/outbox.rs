//! The journal as the audit service reads it: every change of authority with its holder and its
//! lineage, and what services reported.

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{ByteRange, CapId, Caveats, Fault, LinkHash};
use distos_core::{Holder, Record};
use distos_rpc::fail;
use distos_schemas::kernel_capnp;
use kernel_capnp::outbox::{self, *};

use crate::journal::codec;
use crate::kernel::{Kernel, now_ms};
use crate::server::Done;

/// Most records in one pull.
const MAX_PULL: usize = 1024;
/// How long a pull waits when there is nothing.
const PULL_WAIT: Duration = Duration::from_secs(1);

/// The journal as the audit service reads it.
pub(crate) struct OutboxServer {
    pub(crate) kernel: Rc<Kernel>,
}

impl outbox::Server for OutboxServer {
    async fn pull(self: Rc<Self>, params: PullParams, mut results: PullResults) -> Done {
        let (after, max) = {
            let params = params.get()?;
            (params.get_after(), (params.get_max() as usize).min(MAX_PULL))
        };
        if after > self.kernel.journal.status().last_seq {
            let why = format!(
                "this journal has no record {after}: it is not the one that was read before"
            );
            return Err(fail(Fault::Corrupt(why)));
        }
        if self.kernel.closing.get() {
            // Whoever pulls has acknowledged what it pulled before, so it can be ended now.
            self.kernel.audited.notify_one();
            return std::future::pending().await;
        }
        // What is still on its way to the disk belongs to the answer too.
        self.kernel.journal.sync().await.map_err(fail)?;
        let appended = self.kernel.appended.notified();
        let read = || self.kernel.journal.read_from(after, max);
        let mut frames = read();
        if frames.is_empty() {
            let _ = tokio::time::timeout(PULL_WAIT, appended).await;
            // An empty answer means that there is nothing, so what woke this has to be in it.
            self.kernel.journal.sync().await.map_err(fail)?;
            frames = read();
        }
        let mut list = results.get().init_records(frames.len() as u32);
        for (index, frame) in frames.iter().enumerate() {
            let record = codec::decode(&frame.payload).map_err(|e| fail(Fault::internal(e)))?;
            let mut out = list.reborrow().get(index as u32);
            out.set_seq(frame.seq);
            out.set_time_ms(frame.time_ms);
            write_record(&record, out);
        }
        Ok(())
    }

    async fn ack(self: Rc<Self>, params: AckParams, _: AckResults) -> Done {
        let up_to = params.get()?.get_up_to();
        let snapshot =
            || self.kernel.forest.borrow().snapshot().iter().map(codec::encode).collect();
        self.kernel.journal.acknowledge(up_to, now_ms(), snapshot);
        Ok(())
    }
}

/// What an auditor reads of a journal record: every change of authority with its holder and
/// lineage.
fn write_record(record: &Record, mut out: kernel_capnp::record::Builder<'_>) {
    let (kind, detail) = match record {
        Record::Boot { epoch, image_hash } => {
            ("boot", format!("epoch {epoch}, image {}", hex(image_hash)))
        }
        Record::Floor { epoch, time_ms } => ("floor", format!("epoch {epoch}, time {time_ms}")),
        Record::Tenant(tenant) => {
            out.set_tenant(tenant.id.0);
            out.set_holder(&tenant.holder.0);
            ("tenant", format!("{} with {} slots", tenant.name, tenant.slot_quota))
        }
        Record::Node(node) => {
            out.set_vat(node.vat.as_str());
            out.set_tenant(node.tenant.0);
            out.set_cap_id(node.cap.0);
            write_lineage(&node.lineage, out.reborrow());
            write_holder(&node.holder, out.reborrow());
            let kind = match (&node.link, node.life) {
                (Some(_), _) => "redeem",
                (None, distos_core::Life::Durable) => "mint",
                (None, distos_core::Life::Edge) => "edge",
                (None, _) => "derive",
            };
            let link = node.link.map(|l| format!(", link {l}")).unwrap_or_default();
            let issuer = node.issuer.map(|i| format!(", by {i}")).unwrap_or_default();
            let holder = match &node.holder {
                Holder::Key(_) => String::new(),
                Holder::Vat(vat) => format!(", held by {vat}"),
            };
            let what = distos_types::kind::name(node.kind);
            let caveats = describe_caveats(&node.authority.caveats);
            let rights = node.authority.rights;
            (kind, format!("{what} {}: {rights}{caveats}{holder}{link}{issuer}", node.object))
        }
        Record::Revoke(revoked) => {
            out.set_vat(revoked.vat.as_str());
            out.set_tenant(revoked.tenant.0);
            out.set_cap_id(revoked.cap.0);
            write_lineage(&revoked.lineage, out.reborrow());
            write_holder(&revoked.holder, out.reborrow());
            (
                "revoke",
                format!("with {} below it ({:?})", revoked.descendants, revoked.reason)
                    .to_lowercase(),
            )
        }
        Record::Tombstone { under, link, expires_ms } => {
            out.set_cap_id(under.0);
            ("revoke", format!("link {link} before it was redeemed, until {expires_ms}"))
        }
        Record::SessionEnded { vat, session, ended } => {
            out.set_vat(vat.as_str());
            ("session", format!("{session} ended with {ended} capabilities"))
        }
        Record::VatDied { vat, ended } => {
            out.set_vat(vat.as_str());
            ("vat", format!("ended with {ended} capabilities"))
        }
        Record::Event { vat, kind, tenant, cap, holder, lineage, detail } => {
            if let Some(holder) = holder {
                write_holder(holder, out.reborrow());
            }
            out.set_vat(vat.as_str());
            out.set_tenant(tenant.0);
            out.set_cap_id(cap.0);
            write_lineage(lineage, out.reborrow());
            (kind.as_str(), detail.clone())
        }
    };
    out.set_kind(kind);
    out.set_detail(&detail);
}

fn write_lineage(lineage: &[CapId], out: kernel_capnp::record::Builder<'_>) {
    let mut list = out.init_lineage(lineage.len() as u32);
    for (index, cap) in lineage.iter().enumerate() {
        list.set(index as u32, cap.0);
    }
}

fn write_holder(holder: &Holder, mut out: kernel_capnp::record::Builder<'_>) {
    if let Holder::Key(key) = holder {
        out.set_holder(&key.0);
    }
}

fn describe_caveats(caveats: &Caveats) -> String {
    let mut text = String::new();
    if caveats.range != ByteRange::WHOLE {
        text += &format!(", bytes {}..{}", caveats.range.start, caveats.range.end);
    }
    if caveats.expires_ms != u64::MAX {
        text += &format!(", until {}", caveats.expires_ms);
    }
    if caveats.quota_bytes != u64::MAX {
        text += &format!(", at most {} bytes", caveats.quota_bytes);
    }
    if caveats.quota_tasks != u32::MAX {
        text += &format!(", at most {} tasks", caveats.quota_tasks);
    }
    if caveats.end_to_end {
        text += ", end to end";
    }
    text
}

fn hex(bytes: &[u8; 32]) -> String {
    LinkHash(*bytes).to_string()
}
