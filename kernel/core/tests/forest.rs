//! Random and exhaustive runs of small worlds, checked after every command against a plain model
//! of the capability table, of the journal and of what was revoked.

use std::collections::{BTreeMap, BTreeSet};

use distos_abi::{
    Authority, CapId, Caveats, Fault, Generation, HolderKey, Kind, LinkHash, ObjectId, Rights,
    SessionId, SlotRef, TenantId, VatName,
};
use distos_core::{
    Applied, Command, Facts, Forest, GrantView, Holder, Life, LinkClaim, Order, Outcome, Record,
    TableOp, TreeView,
};
use proptest::prelude::*;

const KIND: Kind = Kind(1);
const ITEM: Kind = Kind(2);
const QUOTA: u32 = 7;
const CAPACITY: u32 = 14;
const RULES: u8 = 21;

type Op = (u8, u8, u8, u8);

/// A forest beside what a reader of the table and of the journal would see of it.
#[derive(Clone)]
struct World {
    forest: Forest,
    now: u64,
    log: Vec<(u64, Record)>,
    table: BTreeMap<u32, (Generation, Option<SlotRef>)>,
    generations: BTreeSet<Generation>,
    /// Every capability ever published: its lineage and home.
    seen: Vec<(SlotRef, Vec<CapId>, VatName)>,
    dead: BTreeSet<CapId>,
    dead_links: BTreeSet<(CapId, LinkHash)>,
    spent: BTreeSet<[u8; 32]>,
    gifts: Vec<([u8; 32], VatName, VatName)>,
    left: BTreeMap<[u8; 32], (VatName, VatName, u64)>,
    quarantine: BTreeMap<u64, u32>,
    token: u64,
}

fn vat(n: u8) -> VatName {
    VatName::new(["memory", "scheduler"][n as usize % 2]).expect("a name")
}

fn rights(n: u8) -> Authority {
    let rights = [
        Rights::ALL,
        Rights::READ,
        Rights::READ.join(Rights::WRITE),
        Rights::READ.join(Rights::CREATE),
    ][n as usize % 4];
    let expires_ms = if n & 4 == 0 { u64::MAX } else { 200 + u64::from(n) };
    let end_to_end = n & 8 != 0;
    Authority { rights, caveats: Caveats { expires_ms, end_to_end, ..Caveats::NONE } }
}

fn chain(root: CapId, variant: u8) -> Vec<LinkClaim> {
    let claim = |step: u8, variant: u8| {
        let mut hash = [step; 32];
        hash[..8].copy_from_slice(&root.0.to_be_bytes());
        hash[8] = variant;
        let expires_ms = if variant == 1 { 300 } else { u64::MAX };
        let rights = if step == 0 { Rights::READ.join(Rights::WRITE) } else { Rights::READ };
        LinkClaim {
            hash: LinkHash(hash),
            holder: HolderKey([step + 1; 32]),
            issuer: HolderKey([step; 32]),
            authority: Authority { rights, caveats: Caveats { expires_ms, ..Caveats::NONE } },
        }
    };
    match variant % 4 {
        0 => vec![claim(0, 0)],
        1 => vec![claim(0, 0), claim(1, 1)],
        2 => vec![claim(0, 0), claim(1, 2), claim(2, 2)],
        _ => vec![claim(0, 3)],
    }
}

impl World {
    fn new() -> World {
        let mut world = World {
            forest: Forest::new(1, CAPACITY),
            now: 100,
            log: vec![],
            table: BTreeMap::new(),
            generations: BTreeSet::new(),
            seen: vec![],
            dead: BTreeSet::new(),
            dead_links: BTreeSet::new(),
            spent: BTreeSet::new(),
            gifts: vec![],
            left: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            token: 0,
        };
        world.run(Command::Boot { image_hash: [7; 32] }).expect("a boot");
        for (n, name) in [(1, "red"), (2, "blue")] {
            let holder = HolderKey([n; 32]);
            let add = Command::AddTenant { name: name.to_owned(), holder, slot_quota: QUOTA };
            world.run(add).expect("a tenant");
        }
        for n in [0, 1] {
            world.run(mint_root(n, n + 1)).expect("a root");
        }
        world
    }

    fn slot(&self, n: u8) -> (SlotRef, VatName) {
        let (slot, _, home) = &self.seen[n as usize % self.seen.len()];
        (*slot, home.clone())
    }

    fn cap(&self, n: u8) -> (CapId, VatName) {
        let (_, lineage, home) = &self.seen[n as usize % self.seen.len()];
        (*lineage.last().expect("a lineage holds its own"), home.clone())
    }

    /// Any bytes are some command; about one in eight comes from the wrong vat.
    fn command(&self, (op, a, b, c): Op) -> Command {
        let (slot, home) = self.slot(a);
        let vat_of = |home: VatName| if c >= 224 { vat(c) } else { home };
        let session = SessionId(u64::from(c % 2));
        match op % RULES {
            0 => mint_root(a, b % 3),
            1 => Command::Edge {
                home: vat(a),
                kind: KIND,
                holder: vat(a % 2 + 1),
                authority: rights(b),
                tenant: TenantId(0),
            },
            2 | 3 => Command::Mint {
                vat: vat_of(home),
                parent: (b < 250).then_some(slot),
                kind: ITEM,
                object: ObjectId(u64::from(b % 3)),
                authority: rights(c),
                session: c.is_multiple_of(3).then_some(session),
            },
            4..=6 => {
                Command::Derive { vat: vat_of(home), parent: slot, wanted: rights(b), session }
            }
            7..=9 => {
                let (root_cap, home) = self.cap(a);
                Command::Redeem { vat: vat_of(home), root_cap, links: chain(root_cap, b), session }
            }
            10 => Command::Deposit {
                vat: vat_of(home),
                parent: slot,
                receiver: vat(b),
                wanted: rights(b),
                ticket: [c % 4; 32],
                expires_ms: 150 + u64::from(b),
            },
            11 => {
                let left = self.gifts.get(b as usize % self.gifts.len().max(1)).cloned();
                let (ticket, vat, receiver) = left.unwrap_or(([b; 32], vat(a), vat(b)));
                let vat = if c >= 224 { self::vat(c) } else { vat };
                let receiver = if a >= 224 { self::vat(a) } else { receiver };
                Command::Withdraw { vat, ticket, receiver, session }
            }
            12 => Command::Revoke { vat: vat_of(home), slot },
            13 => {
                let (root, _) = self.cap(b);
                let link = chain(root, c).last().expect("a chain has links").hash;
                Command::RevokeLink { vat: home, under: slot, link, expires_ms: u64::MAX }
            }
            14 => {
                let object = ObjectId(u64::from(b % 3));
                Command::RevokeObject { vat: vat(a), kind: ITEM, object }
            }
            15 => Command::EndSession { vat: vat(a), session },
            16 => Command::VatDied { vat: vat(a) },
            17 => Command::Sweep { max: u32::from(a % 3) },
            18 => Command::Reclaim { max: u32::from(a % 4) },
            19 => Command::Release { token: self.token },
            _ => Command::PersistCheck { vat: vat_of(home), slot, wanted: rights(b) },
        }
    }

    fn live(&self) -> usize {
        self.seen.iter().filter(|(slot, ..)| self.forest.grant(*slot).is_some()).count()
    }

    fn run(&mut self, command: Command) -> Result<Applied, Fault> {
        // Raises the time, so that a refused command can be seen to change nothing at all.
        self.forest.apply(Command::Release { token: 0 }, self.now).expect("nothing to release");
        let (before, live) = (self.forest.clone(), self.live());
        let result = self.forest.apply(command.clone(), self.now);
        match &result {
            Ok(applied) => self.take(&before, live, &command, applied),
            Err(_) => assert_eq!(
                format!("{before:?}"),
                format!("{:?}", self.forest),
                "a refused {command:?} left traces"
            ),
        }
        result
    }

    fn take(&mut self, before: &Forest, live: usize, command: &Command, applied: &Applied) {
        applied.table.iter().for_each(|op| self.store(op));
        self.log.extend(applied.records.iter().map(|record| (self.now, record.clone())));
        match (&applied.outcome, command) {
            (Outcome::Revoked { descendants }, command) => {
                assert_eq!(applied.order, Order::TableFirst, "decreases act first (L2)");
                let ended = (live - self.live()) as u64;
                let named = matches!(command, Command::Revoke { .. })
                    || matches!(command, Command::RevokeLink { .. }) && ended > 0;
                assert_eq!(ended, descendants + u64::from(named), "{command:?}");
            }
            (Outcome::Reclaimed { token, count, .. }, _) => {
                self.token = *token;
                *self.quarantine.entry(*token).or_default() += count;
            }
            _ => assert!(self.live() >= live),
        }
        for record in &applied.records {
            match record {
                Record::Revoke(revoke) => {
                    self.dead.insert(revoke.cap);
                }
                Record::Tombstone { under, link, .. } => {
                    self.dead_links.insert((*under, *link));
                }
                Record::Node(node) if node.life == Life::Durable => {
                    assert_eq!(applied.order, Order::RecordFirst, "an increase waits (L2)");
                }
                _ => {}
            }
        }
        if let (Outcome::Granted(grant), Command::Redeem { links, .. }) =
            (&applied.outcome, command)
        {
            for ancestor in &grant.lineage {
                let refused =
                    |link: &LinkClaim| self.dead_links.contains(&(ancestor.cap, link.hash));
                assert!(!links.iter().any(refused), "a revoked link was redeemed");
            }
            let again = self.forest.clone().apply(command.clone(), self.now);
            match again {
                Ok(again) => {
                    assert_eq!((again.table.len(), again.order), (1, Order::Lazy));
                }
                Err(Fault::OverQuota { .. } | Fault::Unavailable { .. }) => {}
                Err(other) => panic!("a second redeem of the same chain: {other}"),
            }
        }
        match command {
            Command::Deposit { ticket, vat, receiver, expires_ms, .. } => {
                self.spent.remove(ticket);
                self.gifts.push((*ticket, vat.clone(), receiver.clone()));
                self.left.insert(*ticket, (vat.clone(), receiver.clone(), *expires_ms));
            }
            Command::Withdraw { ticket, vat, receiver, .. } => {
                assert!(self.spent.insert(*ticket), "a gift worked twice");
                let left = self.left.get(ticket).expect("a gift outlived its giver or receiver");
                let (home, meant_for, expires_ms) = left;
                assert_eq!((home, meant_for), (vat, receiver), "somebody else's gift");
                assert!(self.now < *expires_ms, "a gift worked too late");
                assert_eq!(applied.order, Order::RecordFirst);
            }
            Command::VatDied { vat } => {
                self.left.retain(|_, (home, receiver, _)| home != vat && receiver != vat);
            }
            Command::Release { token } => self.quarantine.retain(|batch, _| batch > token),
            Command::PersistCheck { .. } => {
                assert_eq!(format!("{before:?}"), format!("{:?}", self.forest));
            }
            _ => {}
        }
    }

    fn store(&mut self, op: &TableOp) {
        match *op {
            TableOp::Publish { slot, parent, .. } => {
                assert!(!self.table.contains_key(&slot.index), "a slot was given out twice");
                assert!(self.generations.insert(slot.generation), "a generation came back");
                assert!(parent.is_none_or(|parent| self.alive(parent)), "born below a dead one");
                self.table.insert(slot.index, (slot.generation, parent));
                let grant = self.forest.grant(slot).expect("what is published is alive");
                let lineage = grant.lineage.iter().map(|ancestor| ancestor.cap).collect();
                self.seen.push((slot, lineage, grant.facts.vat));
            }
            TableOp::Kill { slot } => {
                let gone = self.table.remove(&slot.index).map(|(generation, _)| generation);
                assert_eq!(gone, Some(slot.generation), "killed what was not there");
            }
        }
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

    fn check(&self) {
        let (tree, more) = self.forest.tree(None, usize::MAX);
        assert!(!more);
        let rows: BTreeMap<CapId, &TreeView> = tree.iter().map(|row| (row.cap, row)).collect();
        for row in &tree {
            let Some(parent) = row.parent.map(|parent| rows[&parent]) else {
                continue;
            };
            let (own, above) = (&row.facts, &parent.facts);
            if (above.kind, above.object) == (own.kind, own.object) {
                assert!(own.authority.is_within(above.authority), "C1: {row:?} under {parent:?}");
            }
            let until = |facts: &Facts| facts.authority.caveats.expires_ms;
            assert!(until(own) <= until(above));
            // Of objects that are made through a capability, too: else what a tenant makes could be heard.
            let end_to_end = |facts: &Facts| facts.authority.caveats.end_to_end;
            assert!(end_to_end(own) >= end_to_end(above), "{row:?} under {parent:?}");
            assert!(own.life != Life::Durable || above.life == Life::Durable);
        }
        for (slot, lineage, home) in &self.seen {
            let alive = self.forest.grant(*slot).is_some();
            assert_eq!(alive, self.alive(*slot), "the table and the forest disagree on {slot}");
            if lineage.iter().any(|cap| self.dead.contains(cap)) {
                assert!(!alive, "C2: {slot} outlived a revoked ancestor");
                let (vat, wanted) = (home.clone(), rights(1));
                let use_it = Command::PersistCheck { vat, slot: *slot, wanted };
                assert_eq!(self.forest.clone().apply(use_it, self.now), Err(Fault::Revoked));
            }
        }
        let counts = self.forest.counts();
        assert_eq!(counts.quarantined, self.quarantine.values().sum::<u32>(), "reused too early");
        assert_eq!(counts.used + counts.quarantined + counts.free, counts.capacity);
        for (tenant, used) in self.forest.tenants() {
            assert!(used <= tenant.slot_quota, "{tenant:?} uses {used}");
        }
    }

    /// Both the whole journal and the snapshot rebuild the durable state.
    fn check_replay(&self) {
        let snapshot = self.forest.snapshot();
        let trimmed: Vec<_> = snapshot.iter().map(|record| (0, record.clone())).collect();
        for journal in [&self.log, &trimmed] {
            let mut next = Forest::new(2, CAPACITY);
            for (time, record) in journal {
                next.replay(*time, record).expect("a replay");
            }
            next.replay(self.now, &snapshot[0]).expect("the floor");
            assert_eq!(next.snapshot()[1..], snapshot[1..], "a restart changed who may do what");
            let mut filled = BTreeSet::new();
            for op in next.table_after_replay() {
                let TableOp::Publish { slot, parent, .. } = op else { panic!("{op:?}") };
                assert_eq!(slot.generation.epoch(), 2);
                assert!(parent.is_none_or(|parent| filled.contains(&parent)), "a child first");
                assert!(filled.insert(slot));
            }
            for (tenant, used) in next.tenants() {
                assert!(used <= tenant.slot_quota, "{tenant:?} uses {used}");
            }
        }
    }

    /// After everything was revoked, every slot and every quota is back.
    fn wind_up(&mut self) {
        for row in self.forest.tree(None, usize::MAX).0 {
            if row.parent.is_none() {
                let slot = self.forest.slot_of(row.cap).expect("it is in the tree");
                self.run(Command::Revoke { vat: row.facts.vat, slot }).expect("a revocation");
            }
        }
        self.check();
        self.check_replay();
        while let Outcome::Reclaimed { more: true, .. } =
            self.run(Command::Reclaim { max: 3 }).expect("a batch").outcome
        {}
        self.run(Command::Release { token: self.token }).expect("a release");
        let counts = self.forest.counts();
        assert_eq!((counts.free, counts.tombstones), (CAPACITY, 0), "{counts:?}");
        assert!(self.forest.tenants().iter().all(|(_, used)| *used == 0));
        assert!(self.table.is_empty());
    }
}

fn mint_root(n: u8, tenant: u8) -> Command {
    Command::MintRoot {
        vat: vat(n),
        kind: KIND,
        authority: Authority::FULL,
        holder: HolderKey([tenant; 32]),
        tenant: TenantId(u32::from(tenant)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_commands_breaks_a_promise(ops in prop::collection::vec(any::<Op>(), 1..80)) {
        let mut world = World::new();
        for op in ops {
            world.now += u64::from(op.1 % 8);
            let command = world.command(op);
            // Most random commands are refused; `run` checks that those change nothing.
            let _ = world.run(command);
            world.check();
        }
        world.check_replay();
        world.wind_up();
    }
}

#[test]
fn the_random_worlds_reach_every_rule() {
    let mut seed = 1_u64;
    let mut byte = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    let mut accepted = [0; RULES as usize];
    for _ in 0..100 {
        let mut world = World::new();
        for _ in 0..60 {
            let op = (byte(), byte(), byte(), byte());
            let command = world.command(op);
            accepted[(op.0 % RULES) as usize] += u32::from(world.run(command).is_ok());
        }
    }
    assert!(accepted.iter().all(|times| *times >= 10), "some rule is never tried: {accepted:?}");
}

#[test]
fn every_short_life_of_a_tiny_world_keeps_the_promises() {
    // From two roots: all sequences of five of these commands, cut where one is refused.
    let ops: [Op; 12] = [
        (2, 0, 1, 0),
        (4, 0, 1, 0),
        (4, 2, 1, 1),
        (7, 0, 2, 0),
        (7, 2, 0, 1),
        (10, 0, 1, 1),
        (11, 0, 1, 1),
        (12, 2, 0, 0),
        (13, 0, 0, 0),
        (15, 0, 0, 0),
        (18, 3, 0, 0),
        (19, 0, 0, 0),
    ];
    let mut frontier = vec![World::new()];
    let mut states = 0;
    for _ in 0..4 {
        let mut next = Vec::new();
        for world in &frontier {
            for op in ops {
                let mut world = world.clone();
                let command = world.command(op);
                let before = format!("{:?}", world.forest);
                let accepted = world.run(command).is_ok();
                if accepted && before != format!("{:?}", world.forest) {
                    world.check();
                    world.check_replay();
                    next.push(world);
                }
            }
        }
        states += next.len();
        frontier = next;
    }
    assert!(states > 2000, "only {states} states were reached");
}

/// A world in which the first root, of red, is at the vat `memory`, and its link 0 is redeemed.
fn redeemed() -> (World, SlotRef, CapId) {
    let mut world = World::new();
    let (root_cap, vat) = world.cap(0);
    let links = chain(root_cap, 0);
    let redeem = Command::Redeem { vat, root_cap, links, session: SessionId(1) };
    let applied = world.run(redeem).expect("a redeem");
    let Outcome::Granted(grant) = applied.outcome else { panic!("no grant") };
    (world, grant.slot, root_cap)
}

#[test]
fn a_delegated_link_that_its_delegator_revoked_first_can_never_be_redeemed() {
    let (mut world, session, root_cap) = redeemed();
    let links = chain(root_cap, 1);
    let revoke = Command::RevokeLink {
        vat: vat(0),
        under: session,
        link: links[1].hash,
        expires_ms: u64::MAX,
    };
    assert_eq!(
        world.run(revoke).expect("a tombstone").outcome,
        Outcome::Revoked { descendants: 0 }
    );
    let redeem = Command::Redeem { vat: vat(0), root_cap, links, session: SessionId(2) };
    assert_eq!(world.run(redeem.clone()), Err(Fault::Revoked));
    let mut restarted = Forest::new(2, CAPACITY);
    for (time, record) in &world.log {
        restarted.replay(*time, record).expect("a replay");
    }
    assert_eq!(restarted.apply(redeem, world.now), Err(Fault::Revoked));
}

#[test]
fn a_weaker_session_capability_cannot_revoke_its_holders_delegations_or_outlive_its_session() {
    let (mut world, session, root_cap) = redeemed();
    let derive =
        Command::Derive { vat: vat(0), parent: session, wanted: rights(1), session: SessionId(1) };
    let Outcome::Granted(weak) = world.run(derive).expect("a child").outcome else { panic!() };
    let link = chain(root_cap, 1)[1].hash;
    let revoke = Command::RevokeLink { vat: vat(0), under: weak.slot, link, expires_ms: u64::MAX };
    assert!(matches!(world.run(revoke), Err(Fault::NotFound(_))));
    let persist = |slot| Command::PersistCheck { vat: vat(0), slot, wanted: rights(1) };
    assert_eq!(world.run(persist(weak.slot)), Err(Fault::denied(Rights::READ)));
    let strong = world.run(persist(session)).expect("it stands for its link").outcome;
    assert!(matches!(strong, Outcome::Persist { holder: HolderKey([1, ..]), .. }));
    world.run(Command::EndSession { vat: vat(0), session: SessionId(1) }).expect("an end");
    assert_eq!(world.run(persist(weak.slot)), Err(Fault::Revoked));
}

#[test]
fn a_delegatee_cannot_end_the_delegation_of_a_sibling() {
    let (mut world, first, root_cap) = redeemed();
    let redeem = |variant| Command::Redeem {
        vat: vat(0),
        root_cap,
        links: chain(root_cap, variant),
        session: SessionId(2),
    };
    let Outcome::Granted(sibling) = world.run(redeem(3)).expect("a redeem").outcome else {
        panic!()
    };
    world.run(redeem(1)).expect("a redeem");
    let link = chain(root_cap, 1)[1].hash;
    let revoke = |under| Command::RevokeLink { vat: vat(0), under, link, expires_ms: u64::MAX };
    assert!(matches!(world.run(revoke(sibling.slot)), Err(Fault::NotFound(_))));
    let ended = world.run(revoke(first)).expect("the delegator may").outcome;
    assert_eq!(ended, Outcome::Revoked { descendants: 1 });
    assert_eq!(world.run(redeem(1)), Err(Fault::Revoked));
    assert!(world.forest.grant(first).is_some());
}

#[test]
fn an_object_made_in_a_session_outlives_it_but_not_its_quota() {
    let (mut world, session, _) = redeemed();
    let mint = |parent| Command::Mint {
        vat: vat(0),
        parent: Some(parent),
        kind: ITEM,
        object: ObjectId(9),
        authority: Authority::FULL,
        session: None,
    };
    let quota_bytes = 10;
    let caveats = Caveats { quota_bytes, ..Caveats::NONE };
    let wanted = Authority { rights: Rights::READ, caveats };
    let derive = Command::Derive { vat: vat(0), parent: session, wanted, session: SessionId(1) };
    let Outcome::Granted(small) = world.run(derive).expect("a child").outcome else { panic!() };
    assert_eq!(world.run(mint(small.slot)), Err(Fault::denied(Rights::CREATE)));
    let Outcome::Granted(item) = world.run(mint(session)).expect("an object").outcome else {
        panic!()
    };
    world.run(Command::EndSession { vat: vat(0), session: SessionId(1) }).expect("an end");
    assert!(world.forest.grant(item.slot).is_some());
    assert_eq!(world.forest.objects(&vat(0)), vec![(ITEM, ObjectId(9), TenantId(1))]);
    assert_eq!(item.facts.holder, Holder::Key(HolderKey([1; 32])));
    world.check_replay();
}

/// Else a vat could give a holder more of an object than its capability to it allows, by way of
/// another object (C1).
#[test]
fn nothing_is_minted_below_a_capability_to_the_same_object_by_a_detour() {
    let (mut world, session, _) = redeemed();
    let mint = |parent, object, session| Command::Mint {
        vat: vat(0),
        parent: Some(parent),
        kind: ITEM,
        object: ObjectId(object),
        authority: Authority::FULL,
        session,
    };
    let mut granted = |command| match world.run(command).map(|applied| applied.outcome) {
        Ok(Outcome::Granted(grant)) => Ok(grant.slot),
        Ok(other) => panic!("{other:?}"),
        Err(fault) => Err(fault),
    };
    let item = granted(mint(session, 5, None)).expect("an object");
    let other = granted(mint(item, 6, Some(SessionId(1)))).expect("another");
    assert!(matches!(granted(mint(other, 5, None)), Err(Fault::Malformed(_))));
}

/// Otherwise a tenant that revokes what it has passed on could pass on nothing more for half a
/// minute.
#[test]
fn gifts_that_nobody_can_take_any_more_leave_room_for_others() {
    let (mut world, session, _) = redeemed();
    let wanted = rights(1);
    let deposit = |parent, n: u16| {
        let mut ticket = [0; 32];
        ticket[..2].copy_from_slice(&n.to_le_bytes());
        let (vat, receiver) = (vat(0), vat(1));
        Command::Deposit { vat, parent, receiver, wanted, ticket, expires_ms: u64::MAX }
    };
    let derive = Command::Derive { vat: vat(0), parent: session, wanted, session: SessionId(1) };
    let Outcome::Granted(brief) = world.run(derive).expect("a child").outcome else { panic!() };
    for n in 0..distos_core::MAX_GIFTS_PER_TENANT as u16 {
        world.run(deposit(brief.slot, n)).expect("a gift");
    }
    assert!(matches!(world.run(deposit(session, 999)), Err(Fault::OverQuota { .. })));
    world.run(Command::Revoke { vat: vat(0), slot: brief.slot }).expect("a revocation");
    world.run(deposit(session, 999)).expect("room for one more");
}

#[test]
fn time_that_goes_back_does_not_revive_what_expired() {
    let (mut world, session, root_cap) = redeemed();
    let caveats = Caveats { expires_ms: 500, ..Caveats::NONE };
    let wanted = Authority { rights: Rights::READ, caveats };
    let derive = Command::Derive { vat: vat(0), parent: session, wanted, session: SessionId(1) };
    let Outcome::Granted(brief) = world.run(derive).expect("a child").outcome else { panic!() };
    world.now = 500;
    let again = Command::Derive {
        vat: vat(0),
        parent: brief.slot,
        wanted: rights(1),
        session: SessionId(1),
    };
    assert_eq!(world.run(again.clone()), Err(Fault::Expired { at_ms: 500 }));
    world.now = 10;
    assert_eq!(world.run(again), Err(Fault::Expired { at_ms: 500 }));
    let links = chain(root_cap, 1);
    let redeem = Command::Redeem { vat: vat(0), root_cap, links, session: SessionId(1) };
    assert_eq!(world.run(redeem), Err(Fault::Expired { at_ms: 300 }));
    let swept = world.run(Command::Sweep { max: 9 }).expect("a sweep").outcome;
    assert_eq!(swept, Outcome::Revoked { descendants: 1 });
}

#[test]
fn another_vat_learns_nothing_of_a_capability_and_cannot_end_it() {
    let (mut world, session, root_cap) = redeemed();
    let stranger = vat(1);
    let revoke = Command::Revoke { vat: stranger.clone(), slot: session };
    assert!(matches!(world.run(revoke), Err(Fault::NotFound(_))));
    let links = chain(root_cap, 0);
    let redeem = Command::Redeem { vat: stranger, root_cap, links, session: SessionId(1) };
    assert!(matches!(world.run(redeem), Err(Fault::NotFound(_))));
    assert!(world.forest.grant(session).is_some());
}

#[test]
fn a_huge_subtree_ends_at_once_and_is_reclaimed_in_batches() {
    const MANY: u32 = 20_000;
    let mut forest = Forest::new(1, MANY + 1);
    let root = forest.apply(mint_root(0, 0), 0).expect("a root");
    let Outcome::Granted(root) = root.outcome else { panic!() };
    for _ in 0..MANY {
        let derive = Command::Derive {
            vat: vat(0),
            parent: root.slot,
            wanted: rights(1),
            session: SessionId(1),
        };
        forest.apply(derive, 0).expect("a child");
    }
    let revoked =
        forest.apply(Command::Revoke { vat: vat(0), slot: root.slot }, 0).expect("a store");
    assert_eq!(revoked.outcome, Outcome::Revoked { descendants: u64::from(MANY) });
    assert_eq!(revoked.table, vec![TableOp::Kill { slot: root.slot }]);
    let mut batches = 0;
    loop {
        batches += 1;
        let applied = forest.apply(Command::Reclaim { max: 64 }, 0).expect("a batch");
        let Outcome::Reclaimed { count, token, more } = applied.outcome else { panic!() };
        assert!(count <= 64);
        assert_eq!(forest.counts().free, (batches - 1) * 64, "not before quiescence");
        forest.apply(Command::Release { token }, 0).expect("a release");
        if !more {
            break;
        }
    }
    assert_eq!(batches, (MANY + 1).div_ceil(64));
    assert_eq!(forest.counts().free, MANY + 1);
}

#[test]
fn what_the_operator_delegates_to_a_tenants_key_uses_that_tenants_resources_from_there_on() {
    let mut world = World::new();
    let granted = world.run(mint_root(0, 0)).expect("a root for the operator").outcome;
    let Outcome::Granted(root) = granted else { panic!("a root yields a grant") };
    // Key 1 is red's and key 2 is blue's.
    let redeem = |steps: u8| Command::Redeem {
        vat: vat(0),
        root_cap: root.cap,
        links: chain(root.cap, steps),
        session: SessionId(1),
    };
    let tenant_of = |applied: Applied| match applied.outcome {
        Outcome::Granted(view) => view.facts.tenant,
        other => panic!("{other:?}"),
    };
    let reds = world.run(redeem(0)).expect("red's own");
    assert_eq!(tenant_of(reds), TenantId(1), "not the operator's, whose quota has no bound");
    let blues = world.run(redeem(2)).expect("red delegates to blue");
    assert_eq!(tenant_of(blues), TenantId(1), "blue uses what is red's");
    let used =
        world.forest.tenants().into_iter().find(|(t, _)| t.id == TenantId(1)).map(|(_, used)| used);
    // The world's own root, red's link and session, then blue's two links and session.
    assert_eq!(used, Some(6));
}

/// A forest with one tenant of 64 slots, its key 1, and a root of its own.
fn with_one_tenant() -> (Forest, GrantView) {
    let mut forest = Forest::new(1, 256);
    let holder = HolderKey([1; 32]);
    let add = Command::AddTenant { name: "red".to_owned(), holder, slot_quota: 64 };
    forest.apply(add, 1).expect("a tenant");
    match forest.apply(mint_root(0, 1), 1).expect("a root").outcome {
        Outcome::Granted(root) => (forest, root),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_delegatee_cannot_use_up_the_slots_that_its_delegator_needs_to_revoke() {
    let (mut forest, root) = with_one_tenant();
    let redeem = |forest: &mut Forest, steps: u8| {
        let (vat, root_cap, session) = (vat(0), root.cap, SessionId(1));
        forest.apply(Command::Redeem { vat, root_cap, links: chain(root.cap, steps), session }, 2)
    };
    let granted = redeem(&mut forest, 1).expect("red's delegation to key 2").outcome;
    let Outcome::Granted(blue) = granted else { panic!("a redemption yields a grant") };
    let wanted = Authority { rights: Rights::READ, caveats: Caveats::NONE };
    let greedy = Command::Derive { vat: vat(0), parent: blue.slot, wanted, session: SessionId(1) };
    let taken = (0..100).take_while(|_| forest.apply(greedy.clone(), 3).is_ok()).count();
    assert!(taken < 100, "there is a quota");
    assert!(redeem(&mut forest, 0).is_ok(), "red's own key still gets in");
    let link = chain(root.cap, 1).last().expect("a chain has links").hash;
    let revoke = Command::RevokeLink { vat: vat(0), under: root.slot, link, expires_ms: u64::MAX };
    let ended = forest.apply(revoke, 4).expect("red revokes").outcome;
    assert_eq!(ended, Outcome::Revoked { descendants: 1 + taken as u64 });
}

/// Else whoever holds the capability as well could let a delegation come back that its delegator was
/// told is revoked.
#[test]
fn a_link_stays_refused_for_as_long_as_was_asked_for_though_somebody_asked_for_less_before() {
    const HOUR_MS: u64 = 3600 * 1000;
    let (mut world, session, root_cap) = redeemed();
    let links = chain(root_cap, 2);
    let end_ms = world.now + 240 * HOUR_MS;
    for expires_ms in [end_ms - 20 * HOUR_MS, end_ms] {
        let (vat, under, link) = (vat(0), session, links[1].hash);
        world.run(Command::RevokeLink { vat, under, link, expires_ms }).expect("a tombstone");
    }
    world.now = end_ms - 1;
    world.run(Command::Sweep { max: 9 }).expect("a sweep");
    let redeem = Command::Redeem { vat: vat(0), root_cap, links, session: SessionId(2) };
    assert_eq!(world.run(redeem), Err(Fault::Revoked));
}

#[test]
fn asking_again_and_again_to_refuse_a_link_writes_no_records() {
    let (mut forest, root) = with_one_tenant();
    let mut records = 0;
    for later in 0..1000 {
        let (vat, under, link) = (vat(0), root.slot, LinkHash([9; 32]));
        let expires_ms = 1_000_000 + later;
        let ask = Command::RevokeLink { vat, under, link, expires_ms };
        records += forest.apply(ask, 5).expect("a tombstone").records.len();
    }
    assert_eq!(records, 1);
}
