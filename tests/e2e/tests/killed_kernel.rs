//! The kernel killed in the middle of a thousand mints, delegations and revocations comes back
//! with every change that it had acknowledged, and what was revoked is still dead (L2, C2).
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use distos_abi::{Authority, Caveats, Fault, Rights};
use distos_client::{Connection, fault_of};
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::{Node, kill};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::{region, regions};
use distos_types::Chain;

/// What red and blue do in each round, if nothing comes in between.
const CHANGES: u64 = 1000;
/// How many of them are on their way at the same time.
const AT_ONCE: u64 = 8;
const LIFE_MS: u64 = 3_600_000;

/// One round; the seeds choose what is done and at which change the kernel dies.
const ROUNDS: [u64; 3] = [11, 21, 14];

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

/// What is known about a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Asked for; nobody has answered.
    Asked,
    /// Acknowledged.
    Alive,
    /// Its end was asked for; nobody has answered.
    Ending,
    /// Its end was acknowledged.
    Dead,
}

/// A region of red's, and what was lent of it.
struct Made {
    name: String,
    known: Known,
    /// Whether it was the region that ended, and not only the capabilities to it.
    dropped: bool,
    chain: Option<Chain>,
    live: Option<region::Client>,
    lent: Vec<Rc<RefCell<Lent>>>,
}

/// A delegation to blue.
struct Lent {
    chain: Chain,
    known: Known,
}

#[derive(Default)]
struct Books {
    made: RefCell<Vec<Rc<RefCell<Made>>>>,
    acknowledged: Cell<u64>,
    begun: Cell<u64>,
}

impl Books {
    /// One that lives and that nobody works on.
    fn pick(&self, dice: &mut Dice) -> Option<Rc<RefCell<Made>>> {
        let made = self.made.borrow();
        let free: Vec<_> = made
            .iter()
            .filter(|made| made.try_borrow().is_ok_and(|m| m.known == Known::Alive))
            .collect();
        let len = free.len() as u64;
        (len > 0).then(|| free[dice.below(len) as usize].clone())
    }
}

struct Players {
    red: Holder,
    blue: Holder,
    regions: regions::Client,
}

/// A round of changes until there were enough, or until the node is gone.
async fn change(players: &Players, books: &Books, seed: u64, worker: u64) -> Result<(), Fault> {
    let mut dice = Dice(seed * 1000 + worker + 1);
    // A challenge is for one restore at a time.
    let (blues, _) = players.blue.restore::<regions::Client>(players.blue.chain("regions")).await?;
    while books.begun.get() < CHANGES {
        books.begun.set(books.begun.get() + 1);
        let known = books.pick(&mut dice);
        match (dice.below(10), known) {
            (0..4, _) | (_, None) => mint(players, books, seed).await?,
            (4..7, Some(made)) => lend(players, &blues, &made).await?,
            (7, Some(made)) => revoke_link(&made, &mut dice).await?,
            (8, Some(made)) => end(&made, true).await?,
            (_, Some(made)) => end(&made, false).await?,
        }
        books.acknowledged.set(books.acknowledged.get() + 1);
    }
    Ok(())
}

async fn mint(players: &Players, books: &Books, seed: u64) -> Result<(), Fault> {
    let name = format!("r{seed}-{}", books.made.borrow().len());
    let made = Made {
        name: name.clone(),
        known: Known::Asked,
        dropped: false,
        chain: None,
        live: None,
        lent: Vec::new(),
    };
    let made = Rc::new(RefCell::new(made));
    books.made.borrow_mut().push(made.clone());
    let mut request = players.regions.create_request();
    request.get().set_name(&name);
    request.get().set_bytes(1);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let answer = answer.get().map_err(|e| fault_of(&e))?;
    let mut made = made.borrow_mut();
    made.chain = Some(Chain::decode(answer.get_chain().map_err(|e| fault_of(&e))?)?);
    made.live = Some(answer.get_region().map_err(|e| fault_of(&e))?);
    made.known = Known::Alive;
    Ok(())
}

/// Red signs a delegation, without any node, and blue redeems it.
async fn lend(
    players: &Players,
    blues: &Connection,
    made: &Rc<RefCell<Made>>,
) -> Result<(), Fault> {
    let weaker = Authority { rights: Rights::READ, caveats: Caveats::NONE };
    let mut nonce = [0; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).unwrap();
    let chain = made.borrow().chain.clone().unwrap();
    let to = players.blue.secret().key();
    let chain = chain.delegate(&players.red.secret(), to, weaker, nonce)?;
    let lent = Rc::new(RefCell::new(Lent { chain: chain.clone(), known: Known::Asked }));
    made.borrow_mut().lent.push(lent.clone());
    let redeemed = restore(blues, &chain, &players.blue).await;
    let ended = made.borrow().known != Known::Alive || lent.borrow().known != Known::Asked;
    match redeemed {
        Ok(_) => {
            let mut lent = lent.borrow_mut();
            if lent.known == Known::Asked {
                lent.known = Known::Alive;
            }
            Ok(())
        }
        // Somebody else has ended it meanwhile.
        Err(Fault::Revoked) if ended => Ok(()),
        // The kernel knew of it still, and the memory service not any more.
        Err(Fault::NotFound(_)) if ended && made.borrow().dropped => Ok(()),
        Err(fault) => Err(fault),
    }
}

async fn restore(at: &Connection, chain: &Chain, who: &Holder) -> Result<region::Client, Fault> {
    at.restore(chain, &who.secret()).await
}

/// Red ends one delegation of a region, or one that blue has never shown, if there is none.
async fn revoke_link(made: &Rc<RefCell<Made>>, dice: &mut Dice) -> Result<(), Fault> {
    let (lent, live) = {
        let made = made.borrow();
        let open = |l: &&Rc<RefCell<Lent>>| l.borrow().known != Known::Dead;
        let open: Vec<_> = made.lent.iter().filter(open).cloned().collect();
        let len = open.len() as u64;
        if len == 0 {
            return Ok(());
        }
        (open[dice.below(len) as usize].clone(), made.live.clone().unwrap())
    };
    lent.borrow_mut().known = Known::Ending;
    let hash = lent.borrow().chain.links().last().unwrap().hash;
    let live: capability::Client = live.cast_to();
    let mut request = live.revoke_link_request();
    request.get().set_link(&hash.0);
    request.get().set_expires_ms(now_ms() + LIFE_MS);
    match request.send().promise.await.map(drop).map_err(|e| fault_of(&e)) {
        // The whole region ended meanwhile, and with it the link.
        Err(Fault::Revoked) if made.borrow().known != Known::Alive => Ok(()),
        Err(fault) => Err(fault),
        Ok(()) => {
            lent.borrow_mut().known = Known::Dead;
            Ok(())
        }
    }
}

/// Red ends a region, or every capability to it.
async fn end(made: &Rc<RefCell<Made>>, drop_it: bool) -> Result<(), Fault> {
    let live = {
        let mut made = made.borrow_mut();
        made.known = Known::Ending;
        made.dropped = drop_it;
        made.live.clone().unwrap()
    };
    let answer = if drop_it {
        live.drop_request().send().promise.await.map(drop)
    } else {
        live.cast_to::<capability::Client>().revoke_request().send().promise.await.map(drop)
    };
    answer.map_err(|e| fault_of(&e))?;
    made.borrow_mut().known = Known::Dead;
    Ok(())
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_millis() as u64
}

/// Lets them work until the kernel is killed in the middle.
async fn until_killed(node: &Node, seed: u64, books: Rc<Books>) {
    let (red, blue) = (Holder::load(node, "red"), Holder::load(node, "blue"));
    let (_reds, regions) = red.restore(red.chain("regions")).await.unwrap();
    let players = Rc::new(Players { red, blue, regions });
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|worker| {
            let (players, books) = (players.clone(), books.clone());
            tokio::task::spawn_local(async move { change(&players, &books, seed, worker).await })
        })
        .collect();
    let mut dice = Dice(seed);
    let moment = CHANGES / 10 + dice.below(CHANGES * 8 / 10);
    // Not only between two answers, but at any time in between.
    let jitter = Duration::from_micros(dice.below(3000));
    while books.acknowledged.get() < moment {
        assert!(!workers.iter().any(|worker| worker.is_finished()), "{}", told(workers).await);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    tokio::time::sleep(jitter).await;
    kill(node.kernel_pid());
    for worker in workers {
        let fault = worker.await.unwrap().expect_err("the node is gone");
        assert_eq!(fault.code(), 17, "a caller is told {fault}");
    }
}

async fn told(workers: Vec<tokio::task::JoinHandle<Result<(), Fault>>>) -> String {
    let mut text = String::new();
    for worker in workers.into_iter().filter(|worker| worker.is_finished()) {
        text += &format!("{:?}; ", worker.await);
    }
    text
}

/// A sturdy capability, what is known of it, and those that red derived from it for blue.
type Sturdy = (Chain, Known, Vec<(Chain, Known)>);

impl Books {
    /// All that the node has answered for.
    fn sturdy(&self) -> Vec<Sturdy> {
        let made = self.made.borrow();
        let made = made.iter().map(|made| made.borrow());
        made.filter_map(|made| {
            let lent = made.lent.iter().map(|lent| {
                let lent = lent.borrow();
                (lent.chain.clone(), below(made.known, lent.known))
            });
            Some((made.chain.clone()?, made.known, lent.collect()))
        })
        .collect()
    }
}

/// Holds the node to all that it has acknowledged.
async fn check(node: &Node, books: &Books) -> BTreeMap<&'static str, u64> {
    let (red, blue) = (Holder::load(node, "red"), Holder::load(node, "blue"));
    // Each shows something that lives before anything else: who only presents what is dead is a
    // stranger, has to wait between any two, and is shut out after half a minute.
    let (reds, _reds) = red.restore::<regions::Client>(red.chain("regions")).await.unwrap();
    let (blues, _blues) = blue.restore::<regions::Client>(blue.chain("regions")).await.unwrap();
    let mut counts = BTreeMap::new();
    for (chain, known, all_lent) in books.sturdy() {
        let own = restore(&reds, &chain, &red).await.map(drop);
        holds("a region", known, &own, &mut counts);
        for (lent, known) in all_lent {
            let redeemed = restore(&blues, &lent, &blue).await.map(drop);
            holds("a delegation", known, &redeemed, &mut counts);
            // What lives below something that is dead would be a way around its end.
            assert!(redeemed.is_err() || own.is_ok(), "red's is dead, and blue's lives");
        }
    }
    counts
}

fn holds(
    what: &str,
    known: Known,
    found: &Result<(), Fault>,
    counts: &mut BTreeMap<&'static str, u64>,
) {
    let (count, good) = match known {
        Known::Alive => ("alive", found.is_ok()),
        Known::Dead => ("dead", matches!(found, Err(Fault::Revoked))),
        // Both are right; a mere loss is not.
        Known::Asked | Known::Ending => ("open", matches!(found, Ok(()) | Err(Fault::Revoked))),
    };
    assert!(good, "{what} was {known:?} when the kernel was killed, and now it is {found:?}");
    *counts.entry(count).or_default() += 1;
}

/// Every region and every capability that there is was asked for, and none of them is dead.
fn nothing_else_lives(node: &Node, all: &[Rc<Books>]) {
    let listed = node.json(&["region", "list", "--as", "red.cap"]);
    let listed = listed["regions"].as_array().unwrap().iter();
    let mut listed: BTreeSet<&str> = listed.map(|r| r["name"].as_str().unwrap()).collect();
    let (mut objects, mut links) = (BTreeMap::new(), BTreeMap::new());
    let mut unanswered = 0;
    let made: Vec<_> = all.iter().flat_map(|books| books.made.borrow().clone()).collect();
    for made in made.iter().map(|made| made.borrow()) {
        let listed = listed.remove(made.name.as_str());
        match (made.known, made.dropped) {
            (Known::Alive, _) => assert!(listed, "{} is lost", made.name),
            (Known::Dead, true) => assert!(!listed, "{} came back", made.name),
            // An empty region that nobody has a capability to may go at a boot, or stay.
            _ => {}
        }
        let Some(chain) = &made.chain else {
            unanswered += usize::from(listed);
            continue;
        };
        objects.insert(chain.root().object.0, made.known);
        links.insert(last_link(chain), made.known);
        for lent in &made.lent {
            let lent = lent.borrow();
            links.insert(last_link(&lent.chain), below(made.known, lent.known));
        }
    }
    assert!(listed.is_empty(), "nobody made {listed:?}");
    let tree = node.json(&["cap", "tree", "--tenant", "red"]);
    let mut unknown = BTreeSet::new();
    for cap in tree["nodes"].as_array().unwrap().iter().filter(|cap| cap["kind"] == "region") {
        let (object, link) = (cap["object"].as_u64().unwrap(), cap["link"].as_str().unwrap());
        let known = if link.is_empty() { objects.get(&object) } else { links.get(link) };
        assert_ne!(known, Some(&Known::Dead), "it was ended, and is in the forest: {cap}");
        if known.is_none() {
            assert!(link.is_empty(), "nobody delegated {cap}");
            unknown.insert(object);
        }
    }
    let most = all.len() * AT_ONCE as usize;
    assert!(unknown.len() <= unanswered.min(most), "nobody minted {unknown:?}");
}

fn last_link(chain: &Chain) -> String {
    let hash = chain.links().last().unwrap().hash;
    hash.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was derived ends with what it was derived from.
fn below(above: Known, known: Known) -> Known {
    match (above, known) {
        (Known::Alive, known) | (_, known @ Known::Dead) => known,
        (Known::Dead, _) => Known::Dead,
        (_, _) => Known::Ending,
    }
}

#[test]
fn a_kernel_killed_amid_a_thousand_changes_comes_back_with_all_that_it_acknowledged() {
    let mut node = Node::boot();
    node.tenants(&["red", "blue"]);
    let mut all = Vec::new();
    for seed in ROUNDS {
        let books = Rc::new(Books::default());
        let processes = node.processes();
        in_this_process(until_killed(&node, seed, books.clone()));
        node.wait_for_end(&processes);
        node.reboot();
        let acknowledged = books.acknowledged.get();
        all.push(books);
        nothing_else_lives(&node, &all);
        let counts = in_this_process(check(&node, &all[all.len() - 1]));
        for what in ["alive", "dead"] {
            let enough = counts.get(what).is_some_and(|count| *count >= 5);
            assert!(enough, "seed {seed}, {acknowledged} changes: {counts:?}");
        }
        eprintln!("seed {seed}: killed after {acknowledged} changes, then {counts:?}");
    }
    // What is dead stays so through every boot.
    for books in &all {
        in_this_process(check(&node, books));
    }
    node.ok(&["audit", "verify"]);
}
