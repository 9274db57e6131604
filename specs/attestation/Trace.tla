------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether a run is a behaviour of Attestation. TraceData is generated     *)
(* from the run of one verifier: the events in the order of their times,   *)
(* in milliseconds, the nodes' names, and the run's freshness bound.       *)
(*                                                                         *)
(* At every event at most one step is possible, so a run is a behaviour    *)
(* exactly if every behaviour of TSpec reaches its end. README lists the   *)
(* events, their fields and where the code has them.                       *)
(***************************************************************************)
EXTENDS Attestation, Sequences, TraceData

VARIABLE i   \* the next event

tvars == <<vars, i>>

\* Before its first boot event a node runs nothing that could be good.
TInit ==
  /\ i = 1
  /\ Init
  /\ soft = [n \in Nodes |-> "bad"]

Software(good) == IF good THEN "good" ELSE "bad"

\* Results about the session that runs on `n`. If it was tampered with, who uses them is the
\* adversary, which nobody knows yet.
OfThisSession(n) == {r \in Results : r.node = n /\ r.boot = boot[n]}
OnThis(n)        == {n, "adversary"}

Event(e) ==
  \/ e.event = "boot"      /\ Boot(e.node, e.resets, Software(e.good))
  \/ e.event = "tamper"    /\ Tamper(e.node)
  \/ e.event = "start"     /\ Restart
  \/ e.event = "challenge" /\ e.nonce = nonces + 1 /\ Challenge(e.node)
  \/ e.event = "verdict"   /\ e.nonce = open[e.node].nonce
                           /\ IF e.good
                              THEN \E q \in quotes : q.boot = e.resets /\ AnswerGood(e.node, q, e.resets)
                              ELSE AnswerBad(e.node)
  \/ e.event = "too_old"   /\ e.nonce = open[e.node].nonce /\ AnswerLate(e.node)
  \/ e.event = "no_answer" /\ NoAnswer(e.node)
  \/ e.event = "place"     /\ \E who \in OnThis(e.node), r \in OfThisSession(e.node) :
                                Place(who, r, e.fresh_until)
  \/ e.event = "join"      /\ \E who \in OnThis(e.node), r \in OfThisSession(e.node) : Join(who, r)
  \/ e.event = "fence"     /\ Fence(e.node, e.epoch)

\* Time first goes to the event's, then the event happens.
TNext ==
  /\ i <= Len(Trace)
  /\ \/ Advance(Trace[i].at) /\ UNCHANGED i
     \/ /\ now = Trace[i].at
        /\ Event(Trace[i])
        /\ i' = i + 1

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

Accepted == <>(i > Len(Trace))
=============================================================================
