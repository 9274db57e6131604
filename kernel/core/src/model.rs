//! The forest's vocabulary: commands, what comes of them, and what the journal stores.

use distos_abi::{
    Authority, CapId, HolderKey, Kind, LinkHash, ObjectId, SessionId, SlotRef, TenantId, VatName,
};

use crate::GrantView;

/// Who holds a capability.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// Whoever can prove possession of this key (C4).
    Key(HolderKey),
    /// A vat of this node, over an edge or through a gift.
    Vat(VatName),
}

/// How long a capability lives if nobody revokes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    /// It survives restarts of its home vat and of the kernel. Its parent is durable too.
    Durable,
    /// It ends with this connection to its home vat.
    Session(SessionId),
    /// It ends when its home vat or the vat that holds it does.
    Edge,
    /// It ends with its parent: an object made over an edge.
    Parent,
}

/// One link of a verified certificate chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkClaim {
    /// The link's BLAKE3 hash.
    pub hash: LinkHash,
    /// Whom it names.
    pub holder: HolderKey,
    /// Who signed it.
    pub issuer: HolderKey,
    /// Its authority, already met with that of the links before it.
    pub authority: Authority,
}

/// What the kernel can be asked to do. `vat` is always the vat that asks, as the kernel knows it;
/// it acts on its own objects only and gets [`distos_abi::Fault::NotFound`] for anybody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A boot begins, with this image. Records the epoch.
    Boot {
        /// BLAKE3 of the image file.
        image_hash: [u8; 32],
    },
    /// A new tenant. Faults: `Malformed` name, `Exists` (name or key). Gives [`Outcome::Tenant`].
    AddTenant {
        /// A word that may be the part after `/` of a vat's name.
        name: String,
        /// Its key.
        holder: HolderKey,
        /// How many slots and tombstones it may use together.
        slot_quota: u32,
    },
    /// A durable root for a vat's root object of a kind. See [`crate::Forest::roots_of`].
    MintRoot {
        /// The home.
        vat: VatName,
        /// Kind of the root object.
        kind: Kind,
        /// What it allows.
        authority: Authority,
        /// Whom it is for.
        holder: HolderKey,
        /// Whom it is charged to.
        tenant: TenantId,
    },
    /// What the image grants one vat at another.
    Edge {
        /// The vat that serves it.
        home: VatName,
        /// Kind of the home's root object.
        kind: Kind,
        /// The vat that holds it.
        holder: VatName,
        /// What it allows.
        authority: Authority,
        /// Whom it is charged to.
        tenant: TenantId,
    },
    /// The first capability to a new object. Durable if `parent` has a durable ancestor (it then
    /// hangs from the nearest one, whose quotas must be those of `parent`) or is absent; it lives
    /// as long as `parent` otherwise. The authority is the vat's choice, for it is a new object;
    /// its expiry is no later than the parent's.
    Mint {
        /// The home.
        vat: VatName,
        /// The capability through which the object was made. None: the vat's own, for the operator.
        parent: Option<SlotRef>,
        /// The new object's kind.
        kind: Kind,
        /// The new object; not zero.
        object: ObjectId,
        /// What it allows.
        authority: Authority,
        /// None for the first capability to a new object. Otherwise another one to an object that
        /// exists, which hangs from `parent` itself and ends with this session.
        session: Option<SessionId>,
    },
    /// A weaker capability to the same object for the same holder, within a session (C1).
    Derive {
        /// The home.
        vat: VatName,
        /// What it is derived from.
        parent: SlotRef,
        /// What is asked for. Missing rights are `Denied` by name.
        wanted: Authority,
        /// The session with which it ends.
        session: SessionId,
    },
    /// Turns a chain, whose signatures and possession the caller has verified, into a capability
    /// within a session. Each link becomes a durable node once; all or nothing.
    Redeem {
        /// The home.
        vat: VatName,
        /// The capability that the chain's root names.
        root_cap: CapId,
        /// The links, root first.
        links: Vec<LinkClaim>,
        /// The session with which it ends.
        session: SessionId,
    },
    /// Leaves a one-shot gift for a vat.
    Deposit {
        /// The home.
        vat: VatName,
        /// What the gift is derived from.
        parent: SlotRef,
        /// Who may withdraw it.
        receiver: VatName,
        /// What it allows.
        wanted: Authority,
        /// 32 random bytes: whoever is the receiver and knows them may withdraw.
        ticket: [u8; 32],
        /// When it is too late, in milliseconds since the Unix epoch.
        expires_ms: u64,
    },
    /// Takes a gift, once. `NotFound` for a ticket that is unknown, used, late, revoked, or meant
    /// for somebody else.
    Withdraw {
        /// The home.
        vat: VatName,
        /// The gift's ticket.
        ticket: [u8; 32],
        /// Who asks, as the home knows it from the edge.
        receiver: VatName,
        /// The session with which the capability ends.
        session: SessionId,
    },
    /// What a root certificate for `slot`'s own holder may say; changes nothing. `Denied` if the
    /// holder has no key or if a session capability is weaker than the durable one above it.
    PersistCheck {
        /// The home.
        vat: VatName,
        /// The capability.
        slot: SlotRef,
        /// What the certificate should allow.
        wanted: Authority,
    },
    /// Ends a capability and all below it (C2). If it was a link, the link stays refused.
    Revoke {
        /// The home.
        vat: VatName,
        /// What ends.
        slot: SlotRef,
    },
    /// Ends the node of a link that is `under` or descends from it, or remembers the unredeemed
    /// link as revoked. A session capability no weaker than the durable one above it stands for
    /// that one.
    RevokeLink {
        /// The home.
        vat: VatName,
        /// By whose authority.
        under: SlotRef,
        /// The link.
        link: LinkHash,
        /// Until when an unredeemed link is remembered at least; counts as no later than
        /// [`crate::MAX_TOMBSTONE_MS`] ahead.
        expires_ms: u64,
    },
    /// Ends every capability to an object. `Revoked { descendants: 0 }` if there is none.
    RevokeObject {
        /// The home.
        vat: VatName,
        /// The object's kind.
        kind: Kind,
        /// The object; not zero.
        object: ObjectId,
    },
    /// A connection to a vat closed: its session capabilities end.
    EndSession {
        /// The home.
        vat: VatName,
        /// Its session.
        session: SessionId,
    },
    /// A vat ended: so do its sessions, its edges on either side and gifts from and for it.
    VatDied {
        /// Which.
        vat: VatName,
    },
    /// Ends up to `max` capabilities whose time is over; forgets tombstones and gifts likewise.
    Sweep {
        /// The most capabilities to end at once.
        max: u32,
    },
    /// Takes up to `max` slots from dead capabilities into quarantine.
    Reclaim {
        /// The most slots to take at once.
        max: u32,
    },
    /// Every guard that was taken before the kills of this batch were stored is gone: slots of
    /// this batch and of those before may be used again.
    Release {
        /// From [`Outcome::Reclaimed`].
        token: u64,
    },
    /// Something that an auditor must be able to see. Text is cut to [`crate::MAX_EVENT_BYTES`].
    Report {
        /// Who reports.
        vat: VatName,
        /// Such as `denial`.
        kind: String,
        /// Whom it concerns.
        tenant: TenantId,
        /// In whose name; zero if none.
        cap: CapId,
        /// What happened.
        detail: String,
    },
}

/// What a command gives its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to tell.
    Done,
    /// The new tenant.
    Tenant(TenantId),
    /// A new capability.
    Granted(GrantView),
    /// What a root certificate may say: [`Command::PersistCheck`].
    Persist {
        /// The durable capability that it names.
        cap: CapId,
        /// Kind of its object.
        kind: Kind,
        /// Its object.
        object: ObjectId,
        /// Whom it is for.
        holder: HolderKey,
        /// What it allows.
        authority: Authority,
    },
    /// How many capabilities ended beside the one that was named. Of [`Command::RevokeObject`],
    /// [`Command::EndSession`], [`Command::VatDied`] and [`Command::Sweep`]: how many ended.
    Revoked {
        /// The count.
        descendants: u64,
    },
    /// Slots went into quarantine.
    Reclaimed {
        /// How many.
        count: u32,
        /// Names the batch for [`Command::Release`].
        token: u64,
        /// Whether dead capabilities remain.
        more: bool,
    },
}

/// One store into the capability table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableOp {
    /// Fill a slot, its generation last.
    Publish {
        /// The slot and its new generation.
        slot: SlotRef,
        /// What it hangs from.
        parent: Option<SlotRef>,
        /// Whom it is charged to.
        tenant: TenantId,
    },
    /// Clear a slot's generation.
    Kill {
        /// The slot and the generation that it had.
        slot: SlotRef,
    },
}

/// Which comes first, the journal or the table (L2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// An increase: nothing shows before the records are durable.
    RecordFirst,
    /// A decrease: the table at once, then the records.
    TableFirst,
    /// Below a durable ancestor, or no change of authority: the records may lag.
    Lazy,
}

/// All that comes of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For the caller.
    pub outcome: Outcome,
    /// For the table, in this order.
    pub table: Vec<TableOp>,
    /// For the journal, in this order.
    pub records: Vec<Record>,
    /// Which of the two comes first.
    pub order: Order,
}

/// A tenant as the journal stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRecord {
    /// Its number.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// Its key.
    pub holder: HolderKey,
    /// How many slots and tombstones it may use together.
    pub slot_quota: u32,
}

/// A new capability as the journal stores it. Only durable ones count at replay; the others are
/// there for the auditor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its lasting identity.
    pub cap: CapId,
    /// What it hangs from.
    pub parent: Option<CapId>,
    /// Its home.
    pub vat: VatName,
    /// Kind of its object.
    pub kind: Kind,
    /// Its object.
    pub object: ObjectId,
    /// What it allows.
    pub authority: Authority,
    /// Whom it is charged to.
    pub tenant: TenantId,
    /// Who holds it.
    pub holder: Holder,
    /// The certificate link that it stands for.
    pub link: Option<LinkHash>,
    /// Who signed that link (C4).
    pub issuer: Option<HolderKey>,
    /// How long it lives.
    pub life: Life,
    /// Root first, itself last.
    pub lineage: Vec<CapId>,
}

/// Why a capability ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its home was asked to.
    Asked,
    /// Its link was named.
    Link,
    /// Its object ended.
    Object,
    /// Its time was over.
    Expired,
}

/// The end of a capability, and of all below it, as the journal stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeRecord {
    /// What ended.
    pub cap: CapId,
    /// Its home.
    pub vat: VatName,
    /// Whom it was charged to.
    pub tenant: TenantId,
    /// Who held it.
    pub holder: Holder,
    /// Root first, itself last.
    pub lineage: Vec<CapId>,
    /// How many ended below it.
    pub descendants: u64,
    /// Why.
    pub reason: Reason,
}

/// What the journal stores, audits and replays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A boot began.
    Boot {
        /// Its number.
        epoch: u32,
        /// BLAKE3 of its image.
        image_hash: [u8; 32],
    },
    /// The first record of a snapshot: what never goes back.
    Floor {
        /// The last boot.
        epoch: u32,
        /// The latest time seen, in milliseconds since the Unix epoch.
        time_ms: u64,
    },
    /// A tenant came.
    Tenant(TenantRecord),
    /// A capability came.
    Node(Box<NodeRecord>),
    /// A capability ended, and all below it.
    Revoke(Box<RevokeRecord>),
    /// A link is refused below `under`.
    Tombstone {
        /// The durable capability below which it would hang.
        under: CapId,
        /// The link.
        link: LinkHash,
        /// When the link expires anyway.
        expires_ms: u64,
    },
    /// A connection closed. For audit only.
    SessionEnded {
        /// To this vat.
        vat: VatName,
        /// Its session.
        session: SessionId,
        /// How many capabilities ended.
        ended: u64,
    },
    /// A vat ended. For audit only.
    VatDied {
        /// Which.
        vat: VatName,
        /// How many capabilities ended.
        ended: u64,
    },
    /// What a vat reported. For audit only.
    Event {
        /// Who reported.
        vat: VatName,
        /// Such as `denial`.
        kind: String,
        /// Whom it concerns.
        tenant: TenantId,
        /// In whose name; zero if none.
        cap: CapId,
        /// Who holds that capability.
        holder: Option<Holder>,
        /// That capability's lineage, root first, as far as the forest still knows it.
        lineage: Vec<CapId>,
        /// What happened.
        detail: String,
    },
}

impl Record {
    /// The boot that this record speaks of. A forest is made with a later epoch than that of any
    /// record that it replays.
    pub fn epoch(&self) -> Option<u32> {
        match self {
            Record::Boot { epoch, .. } | Record::Floor { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}
