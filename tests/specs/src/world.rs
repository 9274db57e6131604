//! The real forest, spoken to in the model's words: the abstraction function from
//! `distos_core::Forest` to a state of `specs/capability/Forest.tla`, and the model's commands as
//! the code's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use distos_abi::{
    Authority, ByteRange, CapId, Caveats, Fault, Generation, HolderKey, Kind, LinkHash, ObjectId,
    Rights, SessionId, SlotRef, TenantId, VatName,
};
use distos_core::inspect::{GiftView, NodeView};
use distos_core::{
    Applied, Command, Forest, Holder, Life, LinkClaim, Order, Outcome, Record, TableOp,
};

use crate::value::Value;

/// Kinds of the root object and of what is made through it.
const ROOT_KIND: Kind = Kind(1);
const ITEM_KIND: Kind = Kind(2);
/// The one tenant.
const TENANT: TenantId = TenantId(1);
/// The model's `Never`.
const NEVER: i64 = 2;
/// What the model's times 0 and 1 are here.
const TIMES_MS: [u64; 2] = [100, 200];
/// What the model's positions in an object are here.
const POSITIONS: [u64; 3] = [0, 65536, u64::MAX];

/// The bounds of a forest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Slots of the capability table.
    pub capacity: u32,
    /// Slots and tombstones that the tenant may use.
    pub quota: u32,
    /// Capabilities that are ever made.
    pub max_caps: usize,
}

/// A forest beside what readers of its table and its journal see.
#[derive(Clone, Debug)]
pub struct World {
    bounds: Bounds,
    epoch: u32,
    now_ms: u64,
    forest: Forest,
    journal: Vec<(u64, Record)>,
    /// Capabilities in the order in which they were made: the model's numbers are places here.
    made: Vec<Made>,
    table: BTreeMap<u32, (Generation, Option<SlotRef>)>,
    /// Capabilities of which a revocation has been answered.
    revoked: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
struct Made {
    cap: CapId,
    /// The newest slot that it had.
    slot: SlotRef,
    /// The generation that it was made with.
    born: Generation,
    /// Numbers of its ancestors and its own.
    line: BTreeSet<usize>,
}

/// What came of a command, in the model's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `granted`, `done`, `revoked-now`, `reclaimed`, `persist`, `restarted`, or a fault's name.
    pub out: String,
    /// How many capabilities ended beside the one that was named.
    pub count: i64,
    /// `record`, `table`, `lazy`, or `none`.
    pub order: String,
}

impl Answer {
    fn new(out: &str, count: u64, order: &str) -> Answer {
        let count = i64::try_from(count).expect("worlds are small");
        Answer { out: out.to_owned(), count, order: order.to_owned() }
    }

    /// As the model states it, without the command.
    pub fn of(last: &Value) -> Answer {
        let word = |field| last.at(field).str().to_owned();
        Answer { out: word("out"), count: last.at("count").int(), order: word("order") }
    }
}

impl World {
    /// An empty forest with one tenant, at the model's time 0.
    ///
    /// # Panics
    /// The forest does not take the tenant.
    pub fn new(bounds: Bounds) -> World {
        let mut world = World {
            bounds,
            epoch: 1,
            now_ms: TIMES_MS[0],
            forest: Forest::new(1, bounds.capacity),
            journal: Vec::new(),
            made: Vec::new(),
            table: BTreeMap::new(),
            revoked: BTreeSet::new(),
        };
        world.must(Command::Boot { image_hash: [7; 32] });
        let (name, holder, slot_quota) = ("red".to_owned(), key("key0"), bounds.quota);
        world.must(Command::AddTenant { name, holder, slot_quota });
        world
    }

    fn must(&mut self, command: Command) {
        let applied = self.forest.apply(command, self.now_ms).expect("the world can be set up");
        self.journal.extend(applied.records.into_iter().map(|record| (self.now_ms, record)));
    }

    /// How many capabilities were ever made.
    pub fn made(&self) -> usize {
        self.made.len()
    }

    /// Everything that the forest is, as text: two worlds with the same text behave alike.
    pub fn concrete(&self) -> String {
        format!("{:?}", self.forest)
    }

    /// The state of the model that this is.
    pub fn state(&self) -> Value {
        let seen = self.forest.inspect();
        let node = |made: &Made| match seen.nodes.get(&made.cap) {
            None => Value::record([("state", Value::text("gone"))]),
            Some(view) if view.live => self.live(view, &made.line),
            Some(view) => Value::record([
                ("state", Value::text("dying")),
                ("life", life_value(view.facts.life)),
                ("link", link_value(view.facts.link)),
                ("charged", Value::Bool(view.charged)),
            ]),
        };
        let tomb = |((under, link), until): (&(CapId, LinkHash), &u64)| {
            Value::record([
                ("under", self.number_value(*under)),
                ("link", link_value(Some(*link))),
                ("until", time_value(*until)),
            ])
        };
        Value::record([
            ("now", Value::Int(if seen.now_ms >= TIMES_MS[1] { 1 } else { 0 })),
            ("node", Value::Seq(self.made.iter().map(node).collect())),
            ("tombs", Value::Set(seen.tombstones.iter().map(tomb).collect())),
            ("gifts", Value::Set(seen.gifts.iter().map(|gift| self.gift(gift)).collect())),
            ("quarantined", Value::Int(seen.quarantined.into())),
        ])
    }

    fn live(&self, view: &NodeView, line: &BTreeSet<usize>) -> Value {
        let facts = &view.facts;
        let numbers = line.iter().map(|i| Value::Int(*i as i64)).collect();
        Value::record([
            ("state", Value::text("live")),
            ("parent", view.parent.map_or(Value::Int(0), |parent| self.number_value(parent))),
            ("object", Value::Int(facts.object.0 as i64)),
            ("authority", authority_value(facts.authority)),
            ("life", life_value(facts.life)),
            ("holder", holder_value(&facts.holder)),
            ("link", link_value(facts.link)),
            ("line", Value::Set(numbers)),
        ])
    }

    fn gift(&self, gift: &GiftView) -> Value {
        let born = |made: &&Made| made.slot == gift.parent;
        let parent = self.made.iter().position(|made| born(&made)).expect("it was given once") + 1;
        Value::record([
            ("ticket", Value::Int(gift.ticket[0].into())),
            ("parent", Value::Int(parent as i64)),
            ("receiver", Value::text(gift.receiver.as_str())),
            ("authority", authority_value(gift.authority)),
            ("until", time_value(gift.expires_ms)),
        ])
    }

    fn number_value(&self, cap: CapId) -> Value {
        Value::Int(self.number(cap) as i64)
    }

    fn number(&self, cap: CapId) -> usize {
        self.made.iter().position(|made| made.cap == cap).expect("every capability was made") + 1
    }

    /// Gives the code a command of the model's.
    ///
    /// # Panics
    /// What the code does with the table or the journal is wrong by itself.
    pub fn apply(&mut self, command: &Value) -> Answer {
        match command.at("op").str() {
            "restart" => return self.restart(),
            "tick" => {
                self.now_ms = TIMES_MS[1];
                self.must(Command::Release { token: 0 });
                return Answer::new("done", 0, "none");
            }
            _ => {}
        }
        let before = format!("{:?}", self.forest);
        let live = self.live_numbers();
        match self.forest.apply(self.command(command), self.now_ms) {
            Ok(applied) => {
                if let Outcome::Persist { authority, .. } = applied.outcome {
                    let wanted = self::authority(command.at("authority"));
                    assert!(authority.is_within(wanted), "C1: a certificate says more than asked");
                }
                self.take(&applied);
                let ended: BTreeSet<_> = live.difference(&self.live_numbers()).copied().collect();
                self.revoked.extend(ended);
                answer(&applied)
            }
            Err(fault) => {
                let after = format!("{:?}", self.forest);
                assert_eq!(before, after, "a refused {command} left traces");
                Answer::new(fault_name(&fault), 0, "none")
            }
        }
    }

    fn take(&mut self, applied: &Applied) {
        for op in &applied.table {
            match *op {
                TableOp::Publish { slot, parent, .. } => self.publish(slot, parent),
                TableOp::Kill { slot } => {
                    let gone = self.table.remove(&slot.index).map(|(generation, _)| generation);
                    assert_eq!(gone, Some(slot.generation), "killed what was not there");
                }
            }
        }
        self.journal.extend(applied.records.iter().map(|record| (self.now_ms, record.clone())));
    }

    fn publish(&mut self, slot: SlotRef, parent: Option<SlotRef>) {
        assert!(!self.table.contains_key(&slot.index), "a slot was given out twice");
        let fresh = self.made.iter().all(|made| made.born != slot.generation);
        assert!(fresh, "a generation came back");
        self.table.insert(slot.index, (slot.generation, parent));
        let cap = self.forest.grant(slot).expect("what is published is alive").cap;
        let above = parent.map(|parent| {
            self.made.iter().find(|made| made.slot == parent).expect("parents are made first")
        });
        let mut line = above.map_or_else(BTreeSet::new, |above| above.line.clone());
        line.insert(self.made.len() + 1);
        self.made.push(Made { cap, slot, born: slot.generation, line });
    }

    /// The kernel dies, and the next one replays what it finds.
    fn restart(&mut self) -> Answer {
        let durable = self.forest.snapshot();
        self.epoch += 1;
        let mut next = Forest::new(self.epoch, self.bounds.capacity);
        for (time_ms, record) in &self.journal {
            next.replay(*time_ms, record).expect("a journal can be replayed");
        }
        let mut trimmed = Forest::new(self.epoch, self.bounds.capacity);
        for record in &durable {
            trimmed.replay(self.now_ms, record).expect("a snapshot can be replayed");
        }
        self.forest = next;
        self.must(Command::Boot { image_hash: [7; 32] });
        assert_eq!(durable_part(&self.forest), durable_part(&trimmed), "a snapshot says less");
        self.table.clear();
        for op in self.forest.table_after_replay() {
            let TableOp::Publish { slot, parent, .. } = op else { panic!("{op:?} in a new table") };
            assert!(self.table.insert(slot.index, (slot.generation, parent)).is_none());
            let cap = self.forest.grant(slot).expect("what is published is alive").cap;
            let at = self.number(cap) - 1;
            self.made[at].slot = slot;
        }
        Answer::new("restarted", 0, "none")
    }

    /// The walk that every vat makes.
    fn alive(&self, slot: SlotRef) -> bool {
        match self.table.get(&slot.index) {
            Some((generation, parent)) if *generation == slot.generation => {
                parent.is_none_or(|parent| self.alive(parent))
            }
            _ => false,
        }
    }

    fn live_numbers(&self) -> BTreeSet<usize> {
        let live = |made: &Made| self.forest.slot_of(made.cap).is_some();
        let numbered = self.made.iter().enumerate().filter(|(_, made)| live(made));
        numbered.map(|(i, _)| i + 1).collect()
    }

    /// What must hold in every state: C1, C2, and that forest, table and journal agree.
    ///
    /// # Panics
    /// It does not hold.
    pub fn check(&self) {
        let seen = self.forest.inspect();
        for (cap, node) in seen.nodes.iter().filter(|(_, node)| node.live) {
            let Some(parent) = node.parent else { continue };
            let above = &seen.nodes[&parent];
            assert!(above.live, "C2: {cap} outlived its parent");
            let (own, other) = (node.facts.authority, above.facts.authority);
            assert!(own.caveats.expires_ms <= other.caveats.expires_ms, "C1: {cap} lives longer");
            if (node.facts.kind, node.facts.object) == (above.facts.kind, above.facts.object) {
                assert!(own.is_within(other), "C1: {cap} can do more than its parent");
            }
            if node.facts.life == Life::Durable {
                assert_eq!(above.facts.life, Life::Durable, "L2: {cap} would lose its parent");
            }
        }
        for (under, link) in seen.tombstones.keys() {
            let refused = seen.nodes.iter().filter(|(_, n)| n.live && n.facts.link == Some(*link));
            for (cap, _) in refused {
                let line = &self.made[self.number(*cap) - 1].line;
                assert!(!line.contains(&self.number(*under)), "C2: {cap} is a refused link");
            }
        }
        let live = self.live_numbers();
        for (i, made) in self.made.iter().enumerate() {
            let number = i + 1;
            assert_eq!(live.contains(&number), self.alive(made.slot), "the table says other");
            let dead = made.line.iter().find(|ancestor| self.revoked.contains(ancestor));
            assert!(dead.is_none() || !live.contains(&number), "C2: {number} below {dead:?}");
        }
        let slots: BTreeSet<_> = seen.nodes.values().map(|node| node.slot.index).collect();
        assert_eq!(slots.len(), seen.nodes.len(), "two capabilities share a slot");
        let counts = self.forest.counts();
        assert_eq!(counts.used + counts.quarantined + counts.free, counts.capacity);
        for (tenant, used) in self.forest.tenants() {
            assert!(used <= tenant.slot_quota, "{used} slots are more than its quota");
            let paid = seen.nodes.values().filter(|node| node.charged).count();
            assert_eq!(used as usize, paid + seen.tombstones.len(), "what is used is what is paid");
        }
    }

    fn slot(&self, number: &Value) -> SlotRef {
        self.made[number.int() as usize - 1].slot
    }

    fn command(&self, c: &Value) -> Command {
        let vat = || vat(c.at("vat").str());
        let session = || SessionId(1);
        match c.at("op").str() {
            "mint-root" => Command::MintRoot {
                vat: self::vat("memory"),
                kind: ROOT_KIND,
                authority: authority(c.at("authority")),
                holder: key("key0"),
                tenant: TENANT,
            },
            "edge" => Command::Edge {
                home: self::vat("memory"),
                kind: ROOT_KIND,
                holder: self::vat("scheduler"),
                authority: authority(c.at("authority")),
                tenant: TENANT,
            },
            "mint" => Command::Mint {
                vat: vat(),
                parent: Some(self.slot(c.at("cap"))),
                kind: ITEM_KIND,
                object: ObjectId(c.at("object").int() as u64),
                authority: authority(c.at("authority")),
                session: (c.at("session").str() != "none").then(session),
            },
            "derive" => Command::Derive {
                vat: vat(),
                parent: self.slot(c.at("cap")),
                wanted: authority(c.at("authority")),
                session: session(),
            },
            "redeem" => Command::Redeem {
                vat: vat(),
                root_cap: self.made[c.at("cap").int() as usize - 1].cap,
                links: chain(c.at("chain")),
                session: session(),
            },
            "deposit" => Command::Deposit {
                vat: vat(),
                parent: self.slot(c.at("cap")),
                receiver: self::vat(c.at("receiver").str()),
                wanted: authority(c.at("authority")),
                ticket: ticket(c.at("ticket")),
                expires_ms: time_ms(c.at("until")),
            },
            "withdraw" => Command::Withdraw {
                vat: vat(),
                ticket: ticket(c.at("ticket")),
                receiver: self::vat(c.at("receiver").str()),
                session: session(),
            },
            "persist-check" => Command::PersistCheck {
                vat: vat(),
                slot: self.slot(c.at("cap")),
                wanted: authority(c.at("authority")),
            },
            "revoke" => Command::Revoke { vat: vat(), slot: self.slot(c.at("cap")) },
            "revoke-link" => Command::RevokeLink {
                vat: vat(),
                under: self.slot(c.at("cap")),
                link: link(c.at("link")),
                expires_ms: time_ms(c.at("until")),
            },
            "revoke-object" => {
                let object = ObjectId(c.at("object").int() as u64);
                Command::RevokeObject { vat: vat(), kind: ITEM_KIND, object }
            }
            "end-session" => Command::EndSession { vat: vat(), session: session() },
            "vat-died" => Command::VatDied { vat: vat() },
            "sweep" => Command::Sweep { max: u32::MAX },
            "reclaim" => Command::Reclaim { max: u32::MAX },
            "release" => Command::Release { token: u64::MAX },
            other => panic!("the model has a command that this test does not know: {other}"),
        }
    }
}

/// What a snapshot must hold: capabilities without their slots, and refused links.
fn durable_part(forest: &Forest) -> impl PartialEq + fmt::Debug {
    let seen = forest.inspect();
    let nodes: Vec<_> =
        seen.nodes.into_iter().map(|(cap, node)| (cap, node.parent, node.facts)).collect();
    (nodes, seen.tombstones)
}

fn answer(applied: &Applied) -> Answer {
    let order = match applied.order {
        Order::RecordFirst => "record",
        Order::TableFirst => "table",
        Order::Lazy => "lazy",
    };
    match &applied.outcome {
        Outcome::Done => Answer::new("done", 0, order),
        Outcome::Granted(_) => Answer::new("granted", 0, order),
        Outcome::Persist { .. } => Answer::new("persist", 0, order),
        Outcome::Revoked { descendants } => Answer::new("revoked-now", *descendants, order),
        Outcome::Reclaimed { count, .. } => Answer::new("reclaimed", u64::from(*count), order),
        Outcome::Tenant(_) => panic!("the model makes no tenants"),
    }
}

fn fault_name(fault: &Fault) -> &'static str {
    match fault {
        Fault::Denied { .. } => "denied",
        Fault::Revoked => "revoked",
        Fault::Expired { .. } => "expired",
        Fault::NotFound(_) => "not-found",
        Fault::Malformed { .. } => "malformed",
        Fault::Exists(_) => "exists",
        Fault::OverQuota { .. } => "over-quota",
        Fault::Unavailable { .. } => "unavailable",
        other => panic!("the model has no such fault: {other}"),
    }
}

fn vat(name: &str) -> VatName {
    VatName::new(name).expect("the model's names are names")
}

fn key(name: &str) -> HolderKey {
    let number = name.strip_prefix("key").and_then(|n| n.parse::<u8>().ok());
    HolderKey([number.expect("the model's keys have numbers") + 1; 32])
}

fn ticket(value: &Value) -> [u8; 32] {
    [value.int() as u8; 32]
}

fn link(value: &Value) -> LinkHash {
    let parts: Vec<i64> = value.items().into_iter().map(Value::int).collect();
    let mut hash = [0; 32];
    (hash[0], hash[1]) = (parts[0] as u8, parts[1] as u8);
    LinkHash(hash)
}

fn link_value(link: Option<LinkHash>) -> Value {
    let (root, number) = link.map_or((0, 0), |link| (link.0[0].into(), link.0[1].into()));
    Value::Seq(vec![Value::Int(root), Value::Int(number)])
}

fn chain(value: &Value) -> Vec<LinkClaim> {
    let mut issuer = key("key0");
    let mut links = Vec::new();
    for claim in value.items() {
        let holder = key(claim.at("holder").str());
        let (hash, authority) = (link(claim.at("link")), authority(claim.at("authority")));
        links.push(LinkClaim { hash, holder, issuer, authority });
        issuer = holder;
    }
    links
}

fn time_ms(value: &Value) -> u64 {
    match value.int() {
        NEVER => u64::MAX,
        at => TIMES_MS[at as usize],
    }
}

fn time_value(ms: u64) -> Value {
    let at = TIMES_MS.iter().position(|time| *time == ms);
    Value::Int(at.map_or(NEVER, |at| at as i64))
}

fn authority(value: &Value) -> Authority {
    let right = |name: &Value| match name.str() {
        "read" => Rights::READ,
        "write" => Rights::WRITE,
        other => panic!("the model has a right that this test does not know: {other}"),
    };
    let rights = value.at("rights").items().into_iter().map(right);
    let position = |field| POSITIONS[value.at("range").at(field).int() as usize];
    let range = ByteRange { start: position("from"), end: position("to") };
    let caveats = Caveats { expires_ms: time_ms(value.at("exp")), range, ..Caveats::NONE };
    Authority { rights: rights.fold(Rights::NONE, Rights::join), caveats }
}

fn authority_value(authority: Authority) -> Value {
    let names = [(Rights::READ, "read"), (Rights::WRITE, "write")];
    let held = names.iter().filter(|(right, _)| authority.rights.contains(*right));
    let position = |at: u64| {
        let place = POSITIONS.iter().position(|position| *position == at);
        Value::Int(place.expect("ranges begin and end where the model's do") as i64)
    };
    let range = authority.caveats.range;
    Value::record([
        ("rights", Value::Set(held.map(|(_, name)| Value::text(name)).collect())),
        ("exp", time_value(authority.caveats.expires_ms)),
        ("range", Value::record([("from", position(range.start)), ("to", position(range.end))])),
    ])
}

fn life_value(life: Life) -> Value {
    match life {
        Life::Durable => Value::text("durable"),
        Life::Edge => Value::text("edge"),
        Life::Parent => Value::text("parent"),
        Life::Session(session) => Value::Text(format!("session{session}")),
    }
}

fn holder_value(holder: &Holder) -> Value {
    match holder {
        Holder::Key(key) => Value::Text(format!("key{}", key.0[0] - 1)),
        Holder::Vat(vat) => Value::text(vat.as_str()),
    }
}
