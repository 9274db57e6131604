---------------------------- MODULE Attestation ----------------------------
(***************************************************************************)
(* From a TPM's quote to authority, and back out of it.                    *)
(*                                                                         *)
(* A verifier challenges nodes with nonces, appraises what comes back and  *)
(* issues short-lived results. Homes (schedulers, vats that serve objects) *)
(* take a result at the moment of use: to let a node join, which gives it  *)
(* capabilities until the result ends, and to place work.                  *)
(*                                                                         *)
(*   A1  no unattested node joins or gets work                             *)
(*   A2  use rests on evidence no older than Bound, of the very session    *)
(*       that uses it: an old nonce, another node's quote and a reboot     *)
(*       between quote and use all fail                                    *)
(*   A3  a node whose evidence turns bad holds nothing RevokeBound later,  *)
(*       and what runs on it ends: FenceTtl after evidence turned bad, or  *)
(*       WorkTtl after the last that was good was asked for                *)
(*                                                                         *)
(* The adversary controls every message. It has every quote that a TPM     *)
(* could have signed and every result that the verifier could have issued, *)
(* and presents them where and when it likes, or not at all. It may run    *)
(* the software of any node, from boot or from any moment after, and then  *)
(* has that session's key. It cannot forge a signature, guess a nonce or   *)
(* take back what a TPM has measured without a reset.                      *)
(*                                                                         *)
(* Properties speak of what really ran (boot, soft, wasGood), which no     *)
(* check in the protocol looks at.                                         *)
(*                                                                         *)
(* Not modelled: enrolment (each node's attestation key is known from the  *)
(* start), what the registers and event logs contain (good or bad), a TPM  *)
(* whose state is put back, suspend and resume, more than one verifier,    *)
(* crashes of homes but for the scheduler's.                               *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
  Nodes,       \* names; "adversary" is none of them
  Watched,     \* those that the verifier challenges; the others stay as they are, and their quotes
               \* are there to be relayed
  Bound,       \* how long evidence counts as fresh
  NonceTtl,    \* a challenge that is not answered by then is void
  ResultTtl,   \* how long a result counts after it was issued
  Skew,        \* how far a home's clock may be behind the verifier's
  FenceTtl,    \* how long a node's scheduler takes to hear that evidence turned bad, and to end what runs
  WorkTtl,     \* how long what runs may go on after the last good evidence was asked for: while that is
               \* fresh, in its grace, and while it is drained
  MaxTime, MaxBoots, MaxNonces   \* bounds of the instance, in Next and TypeOK alone

VARIABLES
  now,      \* the verifier's clock
  \* What is really so. Only properties and the physics of the TPM look at it.
  boot,     \* node -> resetCount of its TPM: names the session, and the session's key
  soft,     \* node -> what runs: "good" or "bad"
  wasGood,  \* when sessions that were good were last good: {[node, boot, at]}
  leaked,   \* sessions whose key the adversary has: {<<node, boot>>}
  quotes,   \* what TPMs signed: {[node, nonce, boot, good]}
  \* The verifier. `open` and `verdict` are lost when it restarts, `epoch` is durable.
  nonces,   \* how many it has drawn; they never repeat, for they are random
  open,     \* node -> [nonce, opened]; nonce 0 is no challenge
  verdict,  \* node -> [is, boot, taken]; is: "unknown", "matched", "refused"
  epoch,    \* node -> how often its evidence turned bad
  said,     \* last results of verdicts that were replaced: {[node, boot, taken, epoch, issued]}
  turned,   \* when evidence turned bad, and which epoch began: {[node, epoch, at]}
  \* The homes.
  floor,    \* node -> results, and capabilities given for them, of an earlier epoch are dead
  work      \* what runs on nodes, by results of which epoch: {[node, id, epoch]}

machine  == <<boot, soft, wasGood, leaked, quotes>>
verifier == <<nonces, open, verdict, epoch, said, turned>>
homes    == <<floor, work>>
vars     == <<now, machine, verifier, homes>>

RevokeBound == ResultTtl + Skew

Min(a, b)   == IF a < b THEN a ELSE b
NoChallenge == [nonce |-> 0, opened |-> 0]
Unknown     == [is |-> "unknown", boot |-> 0, taken |-> 0]
Refused     == [is |-> "refused", boot |-> 0, taken |-> 0]

Times  == 0..MaxTime
Boots  == 0..MaxBoots
Nonces == 0..MaxNonces

TypeOK ==
  /\ now \in Times /\ nonces \in Nonces
  /\ boot \in [Nodes -> Boots] /\ soft \in [Nodes -> {"good", "bad"}]
  /\ wasGood \subseteq [node : Nodes, boot : Boots, at : Times]
  /\ leaked \subseteq Nodes \X Boots
  /\ quotes \subseteq [node : Nodes, nonce : Nonces, boot : Boots, good : BOOLEAN]
  /\ open \in [Nodes -> [nonce : Nonces, opened : Times]]
  /\ verdict \in [Nodes -> [is : {"unknown", "matched", "refused"}, boot : Boots, taken : Times]]
  /\ \A n \in Nodes : epoch[n] \in Nat /\ floor[n] \in Nat
  /\ \A r \in said :
       /\ r.node \in Nodes /\ r.boot \in Boots /\ r.epoch \in Nat
       /\ r.taken \in Times /\ r.issued \in Times
  /\ \A x \in turned : x.node \in Nodes /\ x.epoch \in Nat /\ x.at \in Times
  /\ \A w \in work : w.node \in Nodes /\ w.epoch \in Nat

Init ==
  /\ now = 0
  /\ boot = [n \in Nodes |-> 0] /\ soft \in [Nodes -> {"good", "bad"}]
  /\ leaked = {<<n, 0>> : n \in {n \in Nodes : soft[n] = "bad"}}
  /\ wasGood = {} /\ quotes = {}
  /\ nonces = 0
  /\ open = [n \in Nodes |-> NoChallenge] /\ verdict = [n \in Nodes |-> Unknown]
  /\ epoch = [n \in Nodes |-> 0] /\ said = {} /\ turned = {}
  /\ floor = [n \in Nodes |-> 0] /\ work = {}

\* Whoever asks gets a result while the verdict stands, so the adversary has the last one of each.
Vouched(n) ==
  IF verdict[n].is = "matched"
  THEN {[node |-> n, boot |-> verdict[n].boot, taken |-> verdict[n].taken, epoch |-> epoch[n], issued |-> now]}
  ELSE {}
Results == said \cup UNION {Vouched(n) : n \in Nodes}

\* Whether what runs on node `n` by results of epoch `e` may go on at time `t`: the node's scheduler hears of bad
\* evidence and ends it, or drains it and ends it when no good evidence comes.
NotRefused(n, e, t)  == \A x \in turned : x.node = n /\ x.epoch > e => t < x.at + FenceTtl
NotForgotten(n, t)   == \E r \in Results : r.node = n /\ t < r.taken + WorkTtl
MayGoOn(n, e, t)     == NotRefused(n, e, t) /\ NotForgotten(n, t)

\* Time does not go past what is due.
Advance(t) ==
  /\ t > now
  /\ \A w \in work : MayGoOn(w.node, w.epoch, t)
  /\ now' = t
  /\ UNCHANGED <<machine, verifier, homes>>

-----------------------------------------------------------------------------
(* Machines. A TPM signs any nonce that it is asked to sign, with its own  *)
(* reset count and registers. Good software has it bind the session's key  *)
(* (extraData is H(nonce, key)); what bad software binds does not matter,  *)
(* for its registers show. The adversary asks as soon as it can, so that   *)
(* every quote that can exist does.                                        *)

Sign(n, x, b, s) == [node |-> n, nonce |-> x, boot |-> b, good |-> s = "good"]

LastGood(n) ==
  IF soft[n] = "good" THEN {[node |-> n, boot |-> boot[n], at |-> now]} ELSE {}

\* A reset with reset count `b` into software `s`. The old session's key is gone with its memory.
Boot(n, b, s) ==
  /\ b > boot[n]
  /\ boot' = [boot EXCEPT ![n] = b]
  /\ soft' = [soft EXCEPT ![n] = s]
  /\ wasGood' = wasGood \cup LastGood(n)
  /\ leaked' = leaked \cup (IF s = "bad" THEN {<<n, b>>} ELSE {})
  /\ quotes' = quotes \cup {Sign(n, x, b, s) : x \in 1..nonces}
  /\ UNCHANGED <<now, verifier, homes>>

\* Good software is taken over at run time; a register that is extended shows it until the next reset.
Tamper(n) ==
  /\ soft[n] = "good"
  /\ soft' = [soft EXCEPT ![n] = "bad"]
  /\ wasGood' = wasGood \cup LastGood(n)
  /\ leaked' = leaked \cup {<<n, boot[n]>>}
  /\ quotes' = quotes \cup {Sign(n, x, boot[n], "bad") : x \in 1..nonces}
  /\ UNCHANGED <<now, boot, verifier, homes>>

-----------------------------------------------------------------------------
(* The verifier: services/attestation/src/state.rs, and evidence.rs for    *)
(* what Appraised stands for.                                              *)

\* 32 random bytes, bound to the node. A challenge that is still open is replaced.
Challenge(n) ==
  /\ nonces' = nonces + 1
  /\ open' = [open EXCEPT ![n] = [nonce |-> nonces + 1, opened |-> now]]
  /\ quotes' = quotes \cup {Sign(m, nonces + 1, boot[m], soft[m]) : m \in Nodes}
  /\ UNCHANGED <<now, boot, soft, wasGood, leaked, verdict, epoch, said, turned, homes>>

\* The quote `q` came as the answer of node `n`, whose session is said to have key `k`.
Appraised(n, q, k) ==
  /\ q.node = n                    \* signed with the enrolled key
  /\ q.nonce = open[n].nonce       \* answers the open challenge of this node
  /\ q.boot = k                    \* binds the key that is to be trusted
  /\ q.good                        \* the registers hold the reference values

\* Each challenge is answered once. Evidence is as old as its challenge: nobody knows when the TPM signed.
AnswerGood(n, q, k) ==
  /\ open[n].nonce # 0
  /\ Appraised(n, q, k)
  /\ now <= open[n].opened + NonceTtl
  /\ verdict' = [verdict EXCEPT ![n] = [is |-> "matched", boot |-> k, taken |-> open[n].opened]]
  /\ open' = [open EXCEPT ![n] = NoChallenge]
  /\ said' = said \cup Vouched(n)
  /\ UNCHANGED <<now, machine, nonces, epoch, turned, homes>>

\* An answer that appraisal refuses, however late. The new epoch is durable before anyone hears of it.
AnswerBad(n) ==
  /\ open[n].nonce # 0
  /\ verdict' = [verdict EXCEPT ![n] = Refused]
  /\ epoch' = [epoch EXCEPT ![n] = @ + 1]
  /\ turned' = turned \cup {[node |-> n, epoch |-> epoch[n] + 1, at |-> now]}
  /\ open' = [open EXCEPT ![n] = NoChallenge]
  /\ said' = said \cup Vouched(n)
  /\ UNCHANGED <<now, machine, nonces, homes>>

\* A good answer that came too late is void, and uses the challenge up.
AnswerLate(n) ==
  /\ open[n].nonce # 0
  /\ now > open[n].opened + NonceTtl
  /\ open' = [open EXCEPT ![n] = NoChallenge]
  /\ UNCHANGED <<now, machine, nonces, verdict, epoch, said, turned, homes>>

\* Silence says nothing about integrity: the verdict stands, and ages.
NoAnswer(n) ==
  /\ open' = [open EXCEPT ![n] = NoChallenge]
  /\ UNCHANGED <<now, machine, nonces, verdict, epoch, said, turned, homes>>

\* What is in memory is lost, so that no quote of an earlier life answers anything.
Restart ==
  /\ said' = Results
  /\ open' = [n \in Nodes |-> NoChallenge]
  /\ verdict' = [n \in Nodes |-> Unknown]
  /\ UNCHANGED <<now, machine, nonces, epoch, turned, homes>>

-----------------------------------------------------------------------------
(* The homes: services/scheduler/src/policy.rs for placement.              *)

\* A result ends with its evidence, and soon after it was issued, whatever is heard or not.
Until(r) == Min(r.taken + Bound, r.issued + ResultTtl)

\* What was given for a result works as long as this: capabilities carry its epoch and its end.
Live(r) ==
  /\ r.epoch >= floor[r.node]
  /\ now < Until(r) + Skew

\* Who can prove the key of a session: the session itself while it runs good software, which tells
\* nobody; and the adversary, once it has run that session's software.
Holds(who, n, b) ==
  \/ /\ who = n
     /\ boot[n] = b
     /\ soft[n] = "good"
  \/ /\ who = "adversary"
     /\ <<n, b>> \in leaked

\* What a home checks at the moment of use, over a connection that `who` authenticates.
MayUse(who, r) ==
  /\ Holds(who, r.node, r.boot)
  /\ Live(r)

\* Joining gives capabilities, renewing gives them anew. Which node has joined is no variable: the
\* properties hold for whoever could have, with every live result.
Join(who, r) ==
  /\ MayUse(who, r)
  /\ UNCHANGED vars

\* A placement names until when the evidence is fresh: `until` is never later than that. From then on it runs.
MayPlace(who, r, until, id) ==
  /\ MayUse(who, r)
  /\ until <= r.taken + Bound
  /\ now < until + Skew
  /\ MayGoOn(r.node, r.epoch, now)
  /\ \A w \in work : w.node = r.node => w.id # id

Place(who, r, until, id) ==
  /\ MayPlace(who, r, until, id)
  /\ work' = work \cup {[node |-> r.node, id |-> id, epoch |-> r.epoch]}
  /\ UNCHANGED <<now, machine, verifier, floor>>

\* It ends, by itself or by its owner's word.
End(n, id) ==
  /\ \E w \in work : w.node = n /\ w.id = id
  /\ work' = {w \in work : w.node # n \/ w.id # id}
  /\ UNCHANGED <<now, machine, verifier, floor>>

\* A home hears of an epoch, if it ever does: one store ends all that the node was given, and on the node itself what runs
\* ends. A scheduler does the same of the epoch that it knows when it has drained the node.
Fence(n, e) ==
  /\ floor[n] <= e /\ e <= epoch[n]
  /\ floor' = [floor EXCEPT ![n] = e]
  /\ work' = {w \in work : w.node # n}
  /\ UNCHANGED <<now, machine, verifier>>

\* A node's scheduler starts: what ran by one before it has ended with that one.
Begin(n) ==
  /\ work' = {w \in work : w.node # n}
  /\ UNCHANGED <<now, machine, verifier, floor>>

-----------------------------------------------------------------------------
Users == Nodes \cup {"adversary"}

Next ==
  \/ now < MaxTime /\ Advance(now + 1)
  \/ \E n \in Watched :
       \/ boot[n] < MaxBoots /\ \E s \in {"good", "bad"} : Boot(n, boot[n] + 1, s)
       \/ Tamper(n)
       \/ nonces < MaxNonces /\ Challenge(n)
       \/ \E q \in quotes, k \in 0..boot[n] : AnswerGood(n, q, k)
       \/ AnswerBad(n)
       \/ AnswerLate(n)
       \/ NoAnswer(n)
       \/ \E e \in 0..epoch[n] : Fence(n, e)
       \/ Begin(n)
  \/ Restart
  \/ \E who \in Users, r \in Results : Join(who, r) \/ Place(who, r, Until(r), 1)
  \/ \E w \in work : End(w.node, w.id)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Session `b` of node `n` really was good less than `d` ago; or ever.     *)
GoodWithin(n, b, d) ==
  \/ boot[n] = b /\ soft[n] = "good"
  \/ \E w \in wasGood : w.node = n /\ w.boot = b /\ now < w.at + d
NodeGoodWithin(n, d) ==
  \/ soft[n] = "good"
  \/ \E w \in wasGood : w.node = n /\ now < w.at + d
EverGood(n, b) ==
  \/ boot[n] = b /\ soft[n] = "good"
  \/ \E w \in wasGood : w.node = n /\ w.boot = b

\* No session that never was good gets in, by whatever route.
A1_NoUnattestedNodeJoins ==
  \A r \in Results : Live(r) => EverGood(r.node, r.boot)

\* What may be used or is held was really so less than Bound (and the skew) ago.
A2_UseRestsOnFreshEvidence ==
  \A r \in Results : Live(r) => GoodWithin(r.node, r.boot, Bound + Skew)

\* A node that was rebooted since the quote does not get in on it, whatever it runs; nor another
\* node. Who took a session over has what that session has, until A2 ends it.
A2_OnlyTheQuotedSessionUses ==
  \A who \in Users, r \in Results : MayUse(who, r) =>
    \/ who = r.node /\ boot[who] = r.boot
    \/ <<r.node, r.boot>> \in leaked

\* RevokeBound after evidence turned bad, nothing from before works, though no home hears of it.
A3_DeadWithinRevokeBound ==
  \A x \in turned, r \in Results :
    now >= x.at + RevokeBound /\ r.node = x.node /\ Live(r) => r.epoch >= x.epoch

\* Where it was heard of, that is so at once: only evidence that was asked for later counts.
A3_FencedUntilNewEvidence ==
  \A x \in turned, r \in Results :
    x.epoch <= floor[x.node] /\ r.node = x.node /\ Live(r) => r.taken >= x.at

\* What runs goes on neither on a node whose evidence has turned bad,
A3_WorkEndsWithEvidence ==
  \A x \in turned, w \in work : w.node = x.node /\ now >= x.at + FenceTtl => w.epoch >= x.epoch

\* nor where that was heard of,
A3_NothingRunsBehindAFence ==
  \A w \in work : w.epoch >= floor[w.node]

\* nor on one that shows nothing: it really was good less than WorkTtl ago.
A2_WorkRestsOnEvidence ==
  \A w \in work : NodeGoodWithin(w.node, WorkTtl)

=============================================================================
