------------------------------ MODULE Revocation ------------------------------
(***************************************************************************)
(* Revocation across nodes: promise C2 where the holder of a capability    *)
(* uses it on a node that is not the object's home, under a lease.         *)
(*                                                                         *)
(* The home lends. A remote asks, and on a grant uses the capability until *)
(* its lease is over on its own clock. `revoke` at home refuses new leases *)
(* at once, tells the lessees, and returns when each has acknowledged or   *)
(* its lease is over, whichever is first.                                  *)
(*                                                                         *)
(* What a message carries, and no more:                                    *)
(*   Ask     capability (its chain), nonce                                 *)
(*   Grant   capability, the nonce of the ask, Term (a duration)           *)
(*   Revoke  capability                                                    *)
(*   Ack     capability                                                    *)
(* No message carries a time of day. A lease runs for Term of the remote's *)
(* monotonic clock from the moment it SENT the ask, so that the time that  *)
(* the messages took only ever shortens it.                                *)
(*                                                                         *)
(* The network keeps whatever was sent and delivers it late, twice, out of *)
(* order or never; a partition is nothing but deliveries that do not       *)
(* happen. Asks, revocations and acknowledgements are therefore not stored *)
(* as messages: each can be received from when it was sent, for ever.      *)
(*                                                                         *)
(* The one assumption on time: while a lease or an ask is under way, in no *)
(* interval does the home's clock count more than Skew ticks more than the *)
(* remote's. Offsets do not matter, remotes may run fast, and drift may    *)
(* add up without bound from one lease to the next.                        *)
(*                                                                         *)
(* Not modelled: the home's own uses and the instant between a check and   *)
(* its commit (`capability` does both); remotes that lie, which betray     *)
(* only what was lent to them; how chains are verified.                    *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Caps,        \* capabilities of one object, each derived from another
    Lineage,     \* Lineage[c]: what c is derived from, from the root to c itself
    NodeOf,      \* NodeOf[c]: the node on which c's holder uses it
    Home,        \* the node of the object
    Term,        \* length of a lease
    Skew,        \* what the home's clock may gain on a remote's within a lease
    MaxAsks,     \* MaxAsks[c]: how often c's holder asks; bounds the state space only
    MaxRevokes   \* revocations: bounds the state space only

VARIABLES
    revoked,     \* home, durable: capabilities whose revocation began
    known,       \* home, durable: links that it redeemed, so that a lease may be out
    owed,        \* home, memory: its own time until the lease on c is surely over
    returned,    \* revocations that returned to their caller
    ask,         \* remote, memory: its last unanswered ask for c
    lease,       \* remote, memory: what it may use
    nonce,       \* the last nonce under which a lease on c was asked for; never used again
    grants,      \* network: the nonces that were granted
    acks,        \* network: the revocations that a node acknowledged
    since,       \* observer: home time since a revocation began, until it returns
    late         \* observer: a use took effect after revoke had returned

vars == <<revoked, known, owed, returned, ask, lease, nonce, grants, acks, since, late>>

Nodes  == {NodeOf[c] : c \in Caps} \ {Home}
Lent   == {c \in Caps : NodeOf[c] # Home}
At(n)  == {c \in Lent : NodeOf[c] = n}
Below(x) == {c \in Lent : x \in Lineage[c]}
Nonces(c) == 1..MaxAsks[c]

\* The published bound, in the home's time: after it, what was lent has ended by itself.
Bound == Term + Skew

None == [nonce |-> 0, left |-> 0, gain |-> 0]
Over == [left |-> 0, gain |-> 0]

ASSUME Skew > 0 /\ Term > 0

Init ==
    /\ revoked = {} /\ known = {} /\ returned = {}
    /\ owed   = [c \in Lent |-> 0]
    /\ ask    = [c \in Lent |-> None]
    /\ lease  = [c \in Lent |-> Over]
    /\ nonce  = [c \in Lent |-> 0]
    /\ grants = [c \in Lent |-> {}]
    /\ acks   = [n \in Nodes |-> {}]
    /\ since  = [x \in Caps |-> 0]
    /\ late = FALSE

----------------------------------------------------------------------------
(* The remote *)

\* Asks for a lease, or for a longer one, and notes when. An older ask is given up.
Ask(c) ==
    /\ nonce[c] < MaxAsks[c]
    /\ nonce' = [nonce EXCEPT ![c] = @ + 1]
    /\ ask' = [ask EXCEPT ![c] = [nonce |-> nonce[c] + 1, left |-> Term, gain |-> 0]]
    /\ UNCHANGED <<revoked, known, owed, returned, lease, grants, acks, since, late>>

\* Takes the grant of the ask that it waits for. Any other is late, or a repetition.
Take(c, s) ==
    /\ s \in grants[c]
    /\ ask[c].nonce = s
    /\ lease' = [lease EXCEPT ![c] = [left |-> ask[c].left, gain |-> ask[c].gain]]
    /\ ask' = [ask EXCEPT ![c] = None]
    /\ UNCHANGED <<revoked, known, owed, returned, nonce, grants, acks, since, late>>

\* One use takes effect: the clock is read and the effect committed in one step.
Use(c) ==
    /\ lease[c].left > 0
    /\ late' = (late \/ Lineage[c] \cap returned # {})
    /\ UNCHANGED <<revoked, known, owed, returned, ask, lease, nonce, grants, acks, since>>

\* Is told of a revocation: forgets every lease under it and every ask as well, for a grant of
\* that ask may still be under way, and only then acknowledges.
Hear(n, x) ==
    /\ x \in revoked
    /\ At(n) \cap Below(x) # {}
    /\ lease' = [c \in Lent |-> IF c \in At(n) /\ c \in Below(x) THEN Over ELSE lease[c]]
    /\ ask' = [c \in Lent |-> IF c \in At(n) /\ c \in Below(x) THEN None ELSE ask[c]]
    /\ acks' = [acks EXCEPT ![n] = @ \cup {x}]
    /\ UNCHANGED <<revoked, known, owed, returned, nonce, grants, since, late>>

\* Loses its memory. A nonce is random, so a later ask never repeats an earlier one's.
RestartRemote(n) ==
    /\ ask' = [c \in Lent |-> IF c \in At(n) THEN None ELSE ask[c]]
    /\ lease' = [c \in Lent |-> IF c \in At(n) THEN Over ELSE lease[c]]
    /\ UNCHANGED <<revoked, known, owed, returned, nonce, grants, acks, since, late>>

----------------------------------------------------------------------------
(* The home *)

\* Answers an ask, be it old or a repetition. The redeemed link is durable before the grant leaves.
Grant(c, s) ==
    /\ s \in 1..nonce[c]
    /\ Lineage[c] \cap revoked = {}
    /\ known' = known \cup {c}
    /\ owed' = [owed EXCEPT ![c] = Bound]
    /\ grants' = [grants EXCEPT ![c] = @ \cup {s}]
    /\ UNCHANGED <<revoked, returned, ask, lease, nonce, acks, since, late>>

\* Begins. The store and its record come first, so that no lease under x is granted from here on.
\* x may be a link that the home never saw: the record is then a tombstone.
Revoke(x) ==
    /\ x \notin revoked
    /\ Cardinality(revoked) < MaxRevokes
    /\ revoked' = revoked \cup {x}
    /\ UNCHANGED <<known, owed, returned, ask, lease, nonce, grants, acks, since, late>>

\* Hears that a node has nothing under x any more.
HearAck(n, x) ==
    /\ x \in acks[n]
    /\ owed' = [c \in Lent |-> IF c \in At(n) /\ c \in Below(x) THEN 0 ELSE owed[c]]
    /\ UNCHANGED <<revoked, known, returned, ask, lease, nonce, grants, acks, since, late>>

\* Returns: nothing is out under x.
Return(x) ==
    /\ x \in revoked \ returned
    /\ \A c \in Below(x) : owed[c] = 0
    /\ returned' = returned \cup {x}
    /\ UNCHANGED <<revoked, known, owed, ask, lease, nonce, grants, acks, since, late>>

\* Loses its memory, its clock's value with it. What it knows of leases is that each link that was
\* redeemed may be lent for a whole Bound from now; revocations that had not returned go on.
RestartHome ==
    /\ owed' = [c \in Lent |-> IF c \in known THEN Bound ELSE 0]
    /\ UNCHANGED <<revoked, known, returned, ask, lease, nonce, grants, acks, since, late>>

----------------------------------------------------------------------------
(* Time *)

Dec(t) == IF t = 0 THEN 0 ELSE t - 1

\* One tick of n's clock. An ask that waited for a whole Term is given up.
RemoteTick(n) ==
    /\ ask' = [c \in Lent |->
        IF c \notin At(n) THEN ask[c]
        ELSE IF ask[c].left <= 1 THEN None
        ELSE [ask[c] EXCEPT !.left = @ - 1, !.gain = Dec(@)]]
    /\ lease' = [c \in Lent |->
        IF c \notin At(n) THEN lease[c]
        ELSE IF lease[c].left <= 1 THEN Over
        ELSE [left |-> lease[c].left - 1, gain |-> Dec(lease[c].gain)]]
    /\ UNCHANGED <<revoked, known, owed, returned, nonce, grants, acks, since, late>>

\* One tick of the home's clock, unless that would be more than Skew ahead of a lessee's.
HomeTick ==
    /\ \A c \in Lent : ask[c].gain < Skew /\ lease[c].gain < Skew
    /\ ask' = [c \in Lent |-> IF ask[c].left > 0 THEN [ask[c] EXCEPT !.gain = @ + 1] ELSE ask[c]]
    /\ lease' = [c \in Lent |->
        IF lease[c].left > 0 THEN [lease[c] EXCEPT !.gain = @ + 1] ELSE lease[c]]
    /\ owed' = [c \in Lent |-> Dec(owed[c])]
    /\ since' = [x \in Caps |->
        IF x \in revoked \ returned /\ since[x] < Bound THEN since[x] + 1 ELSE since[x]]
    /\ UNCHANGED <<revoked, known, returned, nonce, grants, acks, late>>

----------------------------------------------------------------------------
Next ==
    \/ \E c \in Lent : Ask(c) \/ Use(c)
    \/ \E c \in Lent : \E s \in Nonces(c) : Grant(c, s) \/ Take(c, s)
    \/ \E x \in Caps : Revoke(x) \/ Return(x)
    \/ \E n \in Nodes : \E x \in Caps : Hear(n, x) \/ HearAck(n, x)
    \/ \E n \in Nodes : RestartRemote(n) \/ RemoteTick(n)
    \/ RestartHome
    \/ HomeTick

\* A revocation that may return does. All else that liveness needs is a premise of its property.
Spec == Init /\ [][Next]_vars /\ \A x \in Caps : WF_vars(Return(x))

----------------------------------------------------------------------------
(* Safety *)

TypeOK ==
    /\ revoked \subseteq Caps /\ returned \subseteq revoked /\ known \subseteq Lent
    /\ owed \in [Lent -> 0..Bound]
    /\ \A c \in Lent :
        /\ ask[c] \in [nonce : 0..nonce[c], left : 0..Term, gain : 0..Skew]
        /\ nonce[c] \in 0..MaxAsks[c]
        /\ grants[c] \subseteq 1..nonce[c]
    /\ lease \in [Lent -> [left : 0..Term, gain : 0..Skew]]
    /\ acks \in [Nodes -> SUBSET Caps]
    /\ since \in [Caps -> 0..Bound] /\ late \in BOOLEAN

\* When revoke has returned, no use of a descendant took effect later on any node ...
C2_NoEffectAfterReturn == ~late

\* ... and none can: no remote believes that it may.
C2_DeadAfterReturn == \A x \in returned : \A c \in Below(x) : lease[c].left = 0

\* Whatever is lost and whoever restarts, a descendant is dead Bound after its revocation began.
C2_DeadWithinBound ==
    \A x \in revoked : since[x] = Bound => \A c \in Below(x) : lease[c].left = 0

\* Why it holds: the home takes no lease for over that is in use, or that a grant can still start.
HomeCountsEveryLease ==
    \A c \in Lent :
        lease[c].left > 0 \/ (ask[c].left > 0 /\ ask[c].nonce \in grants[c]) => owed[c] > 0

----------------------------------------------------------------------------
(* Liveness *)

\* The home's last restart is some time in the past.
HomeStaysUp == <>[][~RestartHome]_vars

TimePasses == WF_vars(HomeTick) /\ \A n \in Nodes : WF_vars(RemoteTick(n))

MessagesGetThrough ==
    \A n \in Nodes : \A x \in Caps : WF_vars(Hear(n, x)) /\ WF_vars(HearAck(n, x))

\* Every revocation returns though no message ever arrives: a partition that never heals, too.
C2_ReturnsByTimeAlone ==
    HomeStaysUp /\ TimePasses => \A x \in Caps : (x \in revoked) ~> (x \in returned)

\* Every lessee is told, and revoke returns, though no lease ever runs out: one round of messages.
C2_ReturnsByMessagesAlone ==
    HomeStaysUp /\ MessagesGetThrough => \A x \in Caps :
        (x \in revoked) ~> (x \in returned /\ \A c \in Below(x) : x \in acks[NodeOf[c]])

\* A node that no grant reaches any more comes to hold nothing.
C2_CutOffFailsClosed ==
    \A n \in Nodes :
        /\ <>[][\A c \in At(n) : \A s \in Nonces(c) : ~Take(c, s)]_vars
        /\ WF_vars(RemoteTick(n))
        => <>[](\A c \in At(n) : lease[c].left = 0)
=============================================================================
