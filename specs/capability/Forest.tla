------------------------------- MODULE Forest -------------------------------
(* The decisions of the kernel: what `Forest::apply` of kernel/core answers to a command, and what
   the derivation forest is afterwards. Like the code it is a function of state and command; when
   what it decided becomes visible, and when it is durable, is the subject of module Capability.

   A capability is known by a number, in the order of creation: in the code it is the generation of
   its slot, which no boot gives out twice. One vat, Home, serves all objects; another one, Peer,
   holds capabilities over an edge or through a gift and tries what only Home may. Everything is
   charged to one tenant.

   Not modelled: tenants beside that one and their names, depth, quotas of bytes, tasks and calls,
   which slot a capability gets (module Capability), reclaiming in several batches, and the text of
   faults. The code's own tests cover these (kernel/core/tests/forest.rs). *)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS
  Capacity,   \* slots of the capability table
  Quota,      \* slots and tombstones that the tenant may use together
  Never       \* a time later than any other: no expiry

Home == "memory"
Peer == "scheduler"
NoLink == <<0, 0>>
Whole == [from |-> 0, to |-> 2]

Min(a, b) == IF a <= b THEN a ELSE b
Max(a, b) == IF a >= b THEN a ELSE b
MaxOf(S) == CHOOSE x \in S : \A y \in S : y <= x

-----------------------------------------------------------------------------
(* Authority: rights under caveats (kernel/abi, caveats.rs). *)

Authority(rights, exp, range) == [rights |-> rights, exp |-> exp, range |-> range]

MeetRange(a, b) ==
  LET from == Max(a.from, b.from) IN [from |-> from, to |-> Max(Min(a.to, b.to), from)]

(* `Authority::narrow` for rights that are held: caveats only grow (C1). *)
Narrow(own, wanted) ==
  [rights |-> wanted.rights, exp |-> Min(own.exp, wanted.exp),
   range |-> MeetRange(own.range, wanted.range)]

IsWithin(a, b) ==
  /\ a.rights \subseteq b.rights
  /\ a.exp <= b.exp
  /\ MeetRange(b.range, a.range) = a.range

-----------------------------------------------------------------------------
(* A forest `f` is a record:
     now     the latest time seen
     node    a sequence: the capability with number i is node[i]. Its state is "live"; "dying",
             which holds a slot that no reader finds alive; or "gone"
     tombs   links that are refused: [under, link, until]
     gifts   gifts that wait: [ticket, parent, receiver, authority, until]
     quarantined  how many slots wait for quiescence *)

Empty == [now |-> 0, node |-> <<>>, tombs |-> {}, gifts |-> {}, quarantined |-> 0]

Gone == [state |-> "gone"]
(* A dying capability is remembered for what it was, and for whether its tenant still pays. *)
Dying(node, charged) ==
  [state |-> "dying", life |-> node.life, link |-> node.link, charged |-> charged]

Ids(f) == DOMAIN f.node
Live(f) == {i \in Ids(f) : f.node[i].state = "live"}
Held(f) == {i \in Ids(f) : f.node[i].state # "gone"}
Below(f, i) == {j \in Live(f) : i \in f.node[j].line}
(* Parents come before their children, so the largest number is the nearest ancestor. *)
DurableLine(f, i) == {j \in f.node[i].line : f.node[j].life = "durable"}

Usage(f) ==
  Cardinality({i \in Held(f) : f.node[i].state = "live" \/ f.node[i].charged})
    + Cardinality(f.tombs)
Free(f) == Capacity - Cardinality(Held(f)) - f.quarantined

(* Whether `extra` capabilities have room; else the fault. *)
Room(f, extra) ==
  IF Usage(f) + extra > Quota THEN "over-quota"
  ELSE IF extra > Free(f) THEN "unavailable"
  ELSE "ok"

(* The next capability. `line` holds itself and all ancestors. *)
Node(f, parent, object, authority, life, holder, link) ==
  [state |-> "live", parent |-> parent, object |-> object, authority |-> authority,
   life |-> life, holder |-> holder, link |-> link,
   line |-> (IF parent = 0 THEN {} ELSE f.node[parent].line) \cup {Len(f.node) + 1}]

Insert(f, node) == [f EXCEPT !.node = Append(@, node)]

(* What a command gives: the forest after it, the answer, how many capabilities ended beside the
   named one, and what comes first, journal or table (L2). *)
Answer(f, out, count, order) == [f |-> f, out |-> out, count |-> count, order |-> order]
Fault(f, fault) == Answer(f, fault, 0, "none")
Granted(f, order) == Answer(f, "granted", 0, order)

-----------------------------------------------------------------------------
(* Who may ask about which capability. *)

Own(f, vat, i) ==
  IF i \notin Held(f) THEN "revoked"
  ELSE IF vat # Home THEN "not-found"
  ELSE IF i \notin Live(f) THEN "revoked"
  ELSE "ok"

Usable(f, vat, i) ==
  LET own == Own(f, vat, i) IN
  IF own # "ok" THEN own
  ELSE IF f.now >= f.node[i].authority.exp THEN "expired"
  ELSE "ok"

(* Whether a child of `i` may have `wanted` (C1). *)
Weaker(f, vat, i, wanted) ==
  LET usable == Usable(f, vat, i) IN
  IF usable # "ok" THEN usable
  ELSE IF ~(wanted.rights \subseteq f.node[i].authority.rights) THEN "denied"
  ELSE IF f.now >= wanted.exp THEN "expired"
  ELSE "ok"

(* The durable capability for which `i` stands because nothing on the way narrows it; 0 if none. *)
Standing(f, i) ==
  LET durable == DurableLine(f, i) IN
  IF durable = {} THEN 0
  ELSE LET d == f.node[MaxOf(durable)] IN
       IF /\ d.authority = f.node[i].authority
          /\ d.holder = f.node[i].holder
          /\ d.object = f.node[i].object
       THEN MaxOf(durable) ELSE 0

-----------------------------------------------------------------------------
(* The end of capabilities. *)

(* Ends all of `ended`; those of `unpaid` leave a tombstone, which is charged in their place. *)
Bury(f, ended, unpaid) ==
  [f EXCEPT !.node = [i \in DOMAIN @ |->
     IF i \in ended THEN Dying(@[i], i \notin unpaid) ELSE @[i]]]

Entomb(f, under, link, until) ==
  [f EXCEPT !.tombs =
     {t \in @ : ~(t.under = under /\ t.link = link)}
       \cup {[under |-> under, link |-> link, until |-> until]}]

(* Ends `i` and all below it. A link stays refused below what it hung from. *)
End(f, i) ==
  LET node == f.node[i] IN
  IF node.link = NoLink THEN Bury(f, Below(f, i), {})
  ELSE Entomb(Bury(f, Below(f, i), {i}), node.parent, node.link, node.authority.exp)

Revoke(f, i) == Answer(End(f, i), "revoked-now", Cardinality(Below(f, i)) - 1, "table")

(* Ends several that are no links, or whose time is over. *)
EndAll(f, tops) ==
  LET ended == UNION {Below(f, i) : i \in tops} IN
  Answer(Bury(f, ended, {}), "revoked-now", Cardinality(ended), "table")

-----------------------------------------------------------------------------
(* One operator for each command. *)

Plant(f, authority, life, holder) ==
  LET room == Room(f, 1) IN
  IF room # "ok" THEN Fault(f, room)
  ELSE Granted(Insert(f, Node(f, 0, 0, authority, life, holder, NoLink)), "record")

MintRoot(f, authority) == Plant(f, authority, "durable", "key0")
Edge(f, authority) == Plant(f, authority, "edge", Peer)

(* The first capability to an object that was made through `p`, or another one for a session. *)
Mint(f, vat, p, object, authority, session) ==
  LET usable == Usable(f, vat, p)
      own == f.node[p]
      until == [authority EXCEPT !.exp = Min(@, own.authority.exp)]
      durable == DurableLine(f, p)
      room == Room(f, 1)
      child == IF session # "none" THEN Node(f, p, object, until, session, own.holder, NoLink)
               ELSE IF durable # {}
                 THEN Node(f, MaxOf(durable), object, until, "durable", own.holder, NoLink)
                 ELSE Node(f, p, object, until, "parent", own.holder, NoLink) IN
  IF usable # "ok" THEN Fault(f, usable)
  ELSE IF own.object = object THEN Fault(f, "malformed")
  ELSE IF session = "none" /\ durable # {} /\ f.node[MaxOf(durable)].object = object
    THEN Fault(f, "malformed")
  ELSE IF room # "ok" THEN Fault(f, room)
  ELSE Granted(Insert(f, child), IF session # "none" THEN "lazy" ELSE "record")

(* A weaker capability to the same object, within a session. *)
Child(f, p, authority, session, holder) ==
  Node(f, p, f.node[p].object, authority, session, holder, NoLink)

Derive(f, vat, p, wanted, session) ==
  LET weaker == Weaker(f, vat, p, wanted)
      room == Room(f, 1) IN
  IF weaker # "ok" THEN Fault(f, weaker)
  ELSE IF room # "ok" THEN Fault(f, room)
  ELSE LET authority == Narrow(f.node[p].authority, wanted) IN
       Granted(Insert(f, Child(f, p, authority, session, f.node[p].holder)), "lazy")

(* A chain is a sequence of links [link, holder, authority], whose signatures somebody else has
   verified. The walk goes along those that are in the forest and collects those that are not. *)
RECURSIVE Walk(_, _, _, _, _, _)
Walk(f, chain, i, at, authority, fresh) ==
  IF i > Len(chain) THEN [out |-> "ok", at |-> at, fresh |-> fresh]
  ELSE
    LET claim == chain[i]
        narrowed == Narrow(authority, claim.authority)
        holding == {j \in Held(f) : f.node[j].link = claim.link}
        known == MaxOf(holding) IN
    IF ~(claim.authority.rights \subseteq authority.rights) THEN [out |-> "denied"]
    ELSE IF f.now >= narrowed.exp THEN [out |-> "expired"]
    ELSE IF \E t \in f.tombs : t.under \in f.node[at].line /\ t.link = claim.link
      THEN [out |-> "revoked"]
    ELSE IF holding = {}
      THEN Walk(f, chain, i + 1, at, narrowed,
                Append(fresh, [claim EXCEPT !.authority = narrowed]))
    ELSE IF known \notin Live(f) THEN [out |-> "revoked"]
    ELSE IF fresh # <<>> \/ f.node[known].parent # at THEN [out |-> "malformed"]
    ELSE Walk(f, chain, i + 1, known, narrowed, fresh)

(* Each new link becomes a durable capability below the one before it. *)
RECURSIVE Plug(_, _, _)
Plug(f, at, fresh) ==
  IF fresh = <<>> THEN [f |-> f, at |-> at]
  ELSE LET link == Head(fresh)
           node == Node(f, at, f.node[at].object, link.authority, "durable", link.holder, link.link)
           grown == Insert(f, node) IN
       Plug(grown, Len(grown.node), Tail(fresh))

Redeem(f, vat, root, chain, session) ==
  IF root \notin Held(f) THEN Fault(f, "revoked")
  ELSE IF vat # Home \/ f.node[root].life # "durable" THEN Fault(f, "not-found")
  ELSE IF root \notin Live(f) THEN Fault(f, "revoked")
  ELSE IF f.now >= f.node[root].authority.exp THEN Fault(f, "expired")
  ELSE
    LET walked == Walk(f, chain, 1, root, f.node[root].authority, <<>>) IN
    IF walked.out # "ok" THEN Fault(f, walked.out)
    ELSE LET room == Room(f, Len(walked.fresh) + 1)
             plugged == Plug(f, walked.at, walked.fresh)
             last == plugged.f.node[plugged.at]
             child == Child(plugged.f, plugged.at, last.authority, session, last.holder) IN
         IF room # "ok" THEN Fault(f, room)
         ELSE Granted(Insert(plugged.f, child), IF walked.fresh = <<>> THEN "lazy" ELSE "record")

Deposit(f, vat, p, ticket, receiver, wanted, until) ==
  LET weaker == Weaker(f, vat, p, wanted)
      gift == [ticket |-> ticket, parent |-> p, receiver |-> receiver, until |-> until,
               authority |-> Narrow(f.node[p].authority, wanted)] IN
  IF weaker # "ok" THEN Fault(f, weaker)
  ELSE IF \E g \in f.gifts : g.ticket = ticket THEN Fault(f, "exists")
  ELSE Answer([f EXCEPT !.gifts = @ \cup {gift}], "done", 0, "lazy")

(* Whoever may not take a gift learns nothing about it. *)
Withdraw(f, vat, ticket, receiver, session) ==
  LET fitting == {g \in f.gifts : /\ g.ticket = ticket
                                  /\ vat = Home
                                  /\ g.receiver = receiver
                                  /\ f.now < g.until}
      gift == CHOOSE g \in fitting : TRUE
      room == Room(f, 1) IN
  IF fitting = {} THEN Fault(f, "not-found")
  ELSE IF Usable(f, vat, gift.parent) # "ok" THEN Fault(f, "not-found")
  ELSE IF room # "ok" THEN Fault(f, room)
  ELSE LET child == Child(f, gift.parent, gift.authority, session, receiver) IN
       Granted([Insert(f, child) EXCEPT !.gifts = @ \ {gift}], "record")

(* What a root certificate for the capability's own holder may say. *)
PersistCheck(f, vat, i, wanted) ==
  LET usable == Usable(f, vat, i)
      durable == Standing(f, i) IN
  IF usable # "ok" THEN Fault(f, usable)
  ELSE IF durable = 0 \/ f.node[i].holder = Peer THEN Fault(f, "denied")
  ELSE IF ~(wanted.rights \subseteq f.node[durable].authority.rights) THEN Fault(f, "denied")
  ELSE Answer(f, "persist", 0, "lazy")

RevokeOne(f, vat, i) ==
  LET own == Own(f, vat, i) IN
  IF own # "ok" THEN Fault(f, own) ELSE Revoke(f, i)

(* Ends a link below `under`, or remembers it as refused if nobody has redeemed it. *)
RevokeLink(f, vat, under, link, until) ==
  LET own == Own(f, vat, under)
      standing == Standing(f, under)
      holding == {j \in Live(f) : f.node[j].link = link}
      known == {t \in f.tombs : t.under = standing /\ t.link = link} IN
  IF own # "ok" THEN Fault(f, own)
  ELSE IF standing = 0 THEN Fault(f, "not-found")
  ELSE IF holding # {}
    THEN IF standing \in f.node[MaxOf(holding)].line THEN Revoke(f, MaxOf(holding))
         ELSE Fault(f, "not-found")
  ELSE IF known = {} /\ Usage(f) + 1 > Quota THEN Fault(f, "over-quota")
  ELSE Answer(IF \E t \in known : t.until >= until THEN f
              ELSE Entomb(f, standing, link, until),
              "revoked-now", 0, "table")

RevokeObject(f, vat, object) ==
  EndAll(f, {i \in Live(f) : vat = Home /\ f.node[i].object = object})

EndSession(f, vat, session) ==
  EndAll(f, {i \in Live(f) : vat = Home /\ f.node[i].life = session})

VatDied(f, vat, sessions) ==
  LET ended == EndAll(f, {i \in Live(f) :
                 \/ vat = Home /\ f.node[i].life \in sessions
                 \/ f.node[i].life = "edge" /\ (vat = Home \/ f.node[i].holder = vat)}) IN
  [ended EXCEPT !.f.gifts = {g \in @ : vat # Home /\ g.receiver # vat}]

(* Forgets what nobody can use any more, and ends what has expired. *)
Sweep(f) ==
  LET kept == [f EXCEPT
                 !.gifts = {g \in @ : f.now < g.until /\ Usable(f, Home, g.parent) = "ok"},
                 !.tombs = {t \in @ : f.now < t.until}] IN
  EndAll(kept, {i \in Live(kept) : f.now >= f.node[i].authority.exp})

(* Takes the slots of the dying into quarantine. Below what is gone, nothing can be redeemed. *)
Reclaim(f) ==
  LET dying == Held(f) \ Live(f) IN
  Answer([f EXCEPT !.node = [i \in DOMAIN @ |-> IF i \in dying THEN Gone ELSE @[i]],
                   !.tombs = {t \in @ : t.under \notin dying},
                   !.quarantined = @ + Cardinality(dying)],
         "reclaimed", Cardinality(dying), "lazy")

Release(f) == Answer([f EXCEPT !.quarantined = 0], "done", 0, "lazy")

-----------------------------------------------------------------------------
(* What outlives the kernel (kernel/core, durable.rs): live durable capabilities, and tombstones
   below them. *)
Restart(f) ==
  LET kept == {i \in Live(f) : f.node[i].life = "durable"} IN
  Answer([f EXCEPT !.node = [i \in DOMAIN @ |-> IF i \in kept THEN @[i] ELSE Gone],
                   !.tombs = {t \in @ : t.under \in kept /\ f.now < t.until},
                   !.gifts = {},
                   !.quarantined = 0],
         "restarted", 0, "none")

Tick(f) == Answer([f EXCEPT !.now = @ + 1], "done", 0, "none")

-----------------------------------------------------------------------------
(* A command is a record whose `op` names it; `Apply` is `Forest::apply`. *)
Apply(f, c) ==
  CASE c.op = "mint-root" -> MintRoot(f, c.authority)
    [] c.op = "edge" -> Edge(f, c.authority)
    [] c.op = "mint" -> Mint(f, c.vat, c.cap, c.object, c.authority, c.session)
    [] c.op = "derive" -> Derive(f, c.vat, c.cap, c.authority, c.session)
    [] c.op = "redeem" -> Redeem(f, c.vat, c.cap, c.chain, c.session)
    [] c.op = "deposit" ->
         Deposit(f, c.vat, c.cap, c.ticket, c.receiver, c.authority, c.until)
    [] c.op = "withdraw" -> Withdraw(f, c.vat, c.ticket, c.receiver, c.session)
    [] c.op = "persist-check" -> PersistCheck(f, c.vat, c.cap, c.authority)
    [] c.op = "revoke" -> RevokeOne(f, c.vat, c.cap)
    [] c.op = "revoke-link" -> RevokeLink(f, c.vat, c.cap, c.link, c.until)
    [] c.op = "revoke-object" -> RevokeObject(f, c.vat, c.object)
    [] c.op = "end-session" -> EndSession(f, c.vat, c.session)
    [] c.op = "vat-died" -> VatDied(f, c.vat, c.sessions)
    [] c.op = "sweep" -> Sweep(f)
    [] c.op = "reclaim" -> Reclaim(f)
    [] c.op = "release" -> Release(f)
    [] c.op = "tick" -> Tick(f)
    [] c.op = "restart" -> Restart(f)

-----------------------------------------------------------------------------
(* What holds of every forest. *)

(* C1: a child of the same object can do no more than its parent; of an object made through the
   parent, it lives no longer. *)
C1_WithinParent(f) ==
  \A i \in Live(f) : f.node[i].parent # 0 =>
    LET own == f.node[i]  above == f.node[f.node[i].parent] IN
    /\ own.authority.exp <= above.authority.exp
    /\ own.object = above.object => IsWithin(own.authority, above.authority)

(* C2: what hangs below something that ended has ended. *)
C2_NoOrphans(f) ==
  \A i \in Live(f) : f.node[i].line \subseteq Live(f)

(* C2: a link that was revoked below a capability is not alive there. *)
C2_RefusedLinks(f) ==
  \A t \in f.tombs : ~\E i \in Live(f) : f.node[i].link = t.link /\ t.under \in f.node[i].line

(* What survives a restart hangs from what survives a restart (L2). *)
L2_DurableLines(f) ==
  \A i \in Live(f) : f.node[i].life = "durable" =>
    \A j \in f.node[i].line : f.node[j].life = "durable"

(* A link is in the forest once. *)
LinksAreUnique(f) ==
  \A i, j \in Live(f) : f.node[i].link = f.node[j].link /\ i # j => f.node[i].link = NoLink

(* No slot is counted twice, and nobody uses more than there is. *)
SlotsAddUp(f) ==
  /\ Cardinality(Held(f)) + f.quarantined <= Capacity
  /\ Usage(f) <= Quota
=============================================================================
