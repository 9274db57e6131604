------------------------------- MODULE Trace -------------------------------
(* Checks the trace of a kernel that really ran against Forest.

   A trace holds the records of one node's journal, from its first boot on, over any number of
   processes: what the audit service pulls and every auditor reads. Only changes are in it. Each is
   one step here, which has to be what some command of Forest does to the forest: which commands
   were refused, who asked, and what was reclaimed is not recorded, and needs not to be.

   A command that makes or ends several capabilities writes several records, and a kernel that is
   killed leaves any number of the first of them. That is why a step is a record and not a command.

   Weaker than Forest, because a record does not say it: through which capability an object was
   made durably (its record names the durable one above), what a gift allowed, and the time of the
   decision, which lies between that of the record before and its own. Stronger than Forest: all
   vats of the node stand here, a link is signed by whom it hangs from (C4), and authority has all
   of its caveats.

   What has ended is gone at once, as if `Reclaim` followed (`Without`), and the forest remembers
   which of its capabilities live: the field `live` takes the place of `Live`. Without both, a
   trace of a thousand events takes minutes.

   Numbers are ranks, since TLC's integers have 32 bits: two instants, expiries, quotas or
   capabilities compare as they did, and their differences mean nothing. *)
EXTENDS Forest, TraceData, TLC

VARIABLES
  trace,  \* the trace: several are checked at once, each for itself
  forest,
  epoch,  \* the boot
  seen,   \* the links that ever were in the forest
  due,    \* the link whose tombstone is recorded and whose end is not yet; 0 if there is none
  i       \* the next event

tvars == <<trace, forest, epoch, seen, due, i>>

Event == Traces[trace][i]
AtEnd == i > Len(Traces[trace])
Is(name) == ~AtEnd /\ Event.event = name

TraceLive(f) == f.live
IsLive(n) == n \in forest.live
Line(lineage) == {lineage[n] : n \in 1..Len(lineage)}
(* An object is named by its home and what the home calls it. *)
HomeOf(node) == node.object[1]
IsSession(life) == life \notin {"durable", "edge", "parent"}

(* The latest that the decision can have been. `forest.now` is the earliest. *)
Latest == Max(forest.now, Event.time)

(* Nothing can be redeemed below what is gone. *)
Without(f, ended) ==
  [f EXCEPT !.live = @ \ ended,
            !.node = [n \in DOMAIN @ |-> IF n \in ended THEN Gone ELSE @[n]],
            !.tombs = {tomb \in @ : tomb.under \notin ended}]

Step(f) ==
  /\ forest' = [f EXCEPT !.now = Latest]
  /\ i' = i + 1
  /\ UNCHANGED trace
  /\ PrintT(<<"step", trace, i>>)  \* what stands behind the last one is refused

-----------------------------------------------------------------------------
(* `Restart`: a boot keeps what is durable. A link of whose end only the tombstone was written can
   no more be redeemed, though it hangs in the forest. *)
TBoot ==
  /\ Is("boot")
  /\ Event.epoch > epoch
  /\ epoch' = Event.epoch
  /\ due' = 0
  /\ UNCHANGED seen
  /\ \E ended \in {{n \in Live(forest) : forest.node[n].life # "durable"}} :
       Step([Without(forest, ended) EXCEPT !.tombs = {tomb \in @ : Latest < tomb.until}])

-----------------------------------------------------------------------------
(* A capability comes: `MintRoot`, `Edge`, `Mint`, `Derive`, a link of `Redeem` or what hangs from
   the last one, `Withdraw`. *)

NoStronger(a, b) ==
  /\ IsWithin(a, b)
  /\ a.bytes <= b.bytes
  /\ a.tasks <= b.tasks
  /\ a.rate <= b.rate

IsRoot(e) ==
  /\ e.link = NoLink
  /\ \/ e.life = "durable"
     \/ e.life = "edge" /\ e.holder[1] = "vat"

(* The first link of a chain is the node's certificate for whoever holds the capability; each other
   one is signed by the holder of what it hangs from. *)
IsLink(e, above) ==
  /\ e.life = "durable"
  /\ e.holder[1] = "key"
  /\ IF above.link = NoLink THEN e.issuer = "node" /\ e.holder = above.holder
     ELSE <<"key", e.issuer>> = above.holder
  /\ forest.now < e.authority.exp
  /\ e.link \notin seen
  /\ ~\E tomb \in forest.tombs :
       tomb.under \in above.line /\ tomb.link = e.link /\ Latest < tomb.until

(* Another holder than the parent's has it from a gift. *)
IsDerived(e, above) ==
  /\ IsSession(e.life)
  /\ e.holder = above.holder \/ e.holder[1] = "vat"

IsNewObject(e, above) ==
  /\ e.life = "parent" => DurableLine(forest, e.parent) = {}
  /\ e.life # "edge"
  /\ e.holder = above.holder

IsChild(e) ==
  LET above == forest.node[e.parent] IN
  /\ IsLive(e.parent)
  /\ forest.now < above.authority.exp
  /\ HomeOf(e) = HomeOf(above)
  /\ e.life = "durable" => above.life = "durable"
  /\ IF e.object # above.object
       THEN e.link = NoLink /\ e.authority.exp <= above.authority.exp /\ IsNewObject(e, above)
     ELSE /\ NoStronger(e.authority, above.authority)
          /\ IF e.link # NoLink THEN IsLink(e, above) ELSE IsDerived(e, above)

(* A number tells its boot, and rises. *)
TNode ==
  /\ Is("node")
  /\ due = 0
  /\ Event.epoch = epoch
  /\ Event.cap = Len(forest.node) + 1
  /\ IF Event.parent = 0 THEN IsRoot(Event) ELSE IsChild(Event)
  /\ LET e == Event IN
     \E node \in {Node(forest, e.parent, e.object, e.authority, e.life, e.holder, e.link)} :
       /\ Line(e.lineage) = node.line
       /\ seen' = IF e.link = NoLink THEN seen ELSE seen \cup {e.link}
       /\ Step([Insert(forest, node) EXCEPT !.live = @ \cup {e.cap}])
  /\ UNCHANGED <<epoch, due>>

-----------------------------------------------------------------------------
(* Capabilities end: `Revoke`, `RevokeLink`, `RevokeObject`, `Sweep`. *)

(* `EndAll`, and how many that has to be. *)
Ends(tops, count) ==
  \E ended \in {UNION {Below(forest, n) : n \in tops}} :
    /\ Cardinality(ended) = count
    /\ Step(Without(forest, ended))

(* A link leaves a tombstone, first, unless its own time refuses it for ever. *)
TRevoke ==
  /\ Is("revoke")
  /\ IsLive(Event.cap)
  /\ LET node == forest.node[Event.cap] IN
     /\ Line(Event.lineage) = node.line
     /\ due = (IF node.link # NoLink /\ Event.reason # "expired" THEN Event.cap ELSE 0)
     /\ Event.reason = "link" => node.link # NoLink
     /\ Event.reason = "expired" => node.authority.exp <= Latest
  /\ Ends({Event.cap}, Event.below + 1)
  /\ due' = 0
  /\ UNCHANGED <<epoch, seen>>

(* One below which nobody has redeemed the link is written again only to last longer. *)
TTombstone ==
  /\ Is("tombstone")
  /\ due = 0
  /\ LET holding == {n \in Live(forest) : forest.node[n].link = Event.link}
         known == {tomb \in forest.tombs : tomb.under = Event.under /\ tomb.link = Event.link} IN
     IF holding # {}
       THEN /\ forest.node[MaxOf(holding)].parent = Event.under
            /\ forest.node[MaxOf(holding)].authority.exp = Event.until
            /\ due' = MaxOf(holding)
     ELSE /\ IsLive(Event.under)
          /\ forest.node[Event.under].life = "durable"
          /\ \A tomb \in known : tomb.until < Event.until \/ tomb.until <= Latest
          /\ due' = 0
  /\ Step(Entomb(forest, Event.under, Event.link, Event.until))
  /\ UNCHANGED <<epoch, seen>>

(* `EndSession` is recorded if anything ended, `VatDied` always. *)
TSession ==
  /\ Is("session")
  /\ due = 0
  /\ Event.ended > 0
  /\ Ends({n \in Live(forest) : forest.node[n].life = Event.life}, Event.ended)
  /\ UNCHANGED <<epoch, seen, due>>

TVat ==
  /\ Is("vat")
  /\ due = 0
  /\ LET ends(node) ==
           \/ IsSession(node.life) /\ HomeOf(node) = Event.vat
           \/ /\ node.life = "edge"
              /\ HomeOf(node) = Event.vat \/ node.holder = <<"vat", Event.vat>> IN
     Ends({n \in Live(forest) : ends(forest.node[n])}, Event.ended)
  /\ UNCHANGED <<epoch, seen, due>>

-----------------------------------------------------------------------------
TInit ==
  /\ trace \in 1..Len(Traces)
  /\ forest = Empty @@ [live |-> {}]
  /\ epoch = 0
  /\ seen = {}
  /\ due = 0
  /\ i = 1

TNext == TBoot \/ TNode \/ TRevoke \/ TTombstone \/ TSession \/ TVat

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

(* Every event of every trace is a step of the model. *)
Accepted == <>AtEnd

(* What holds of every forest, where it pays to look: it takes as long as several steps. *)
Now == AtEnd \/ Is("boot")
C1 == Now => C1_WithinParent(forest)
C2 == Now => C2_NoOrphans(forest)
L2 == Now => L2_DurableLines(forest)
Structure == Now => /\ LinksAreUnique(forest)
                    /\ forest.live = {n \in Ids(forest) : forest.node[n].state = "live"}
=============================================================================
