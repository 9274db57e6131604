-------------------------------- MODULE MC --------------------------------
EXTENDS Membership

TwoNodes == {"a", "b"}
ThreeNodes == {"a", "b", "c"}
TwoVoters == {"a", "b"}

-----------------------------------------------------------------------------
(* States that must be reachable, or the invariants say nothing.           *)

\* Two voters had to be for it, and both are.
Witness_LetInByTwo == \E n \in Nodes : LetsIn(n) /\ configs[conf[n]].admit = 2

\* One node still lets in whom another has put out.
Witness_NotYetHeard ==
  \E n, m \in Nodes : LetsIn(n) /\ conf[n] = conf[m] /\ Votes(m, "remove") # {} /\ ~LetsIn(m)

\* A voter was left out, is named again, and has said something since.
Witness_NamedAnew ==
  \E n \in Nodes, v \in Pool : heard[n][v] # 0 /\ said[heard[n][v]].since = 3

\* It came back because they thought better of it.
Witness_TakenBack ==
  \E n \in Nodes, v \in Pool : LetsIn(n) /\ heard[n][v] # 0 /\
    \E i \in 1..Len(said) : i < heard[n][v] /\ said[i].voter = v /\ said[i].stance = "remove"

=============================================================================
