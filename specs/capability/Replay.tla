------------------------------- MODULE Replay -------------------------------
(* Every transition of a bounded forest: each command in each state that can be reached. TLC prints
   each once; the test `replay` (tests/model) gives the same command to the code in the same state and compares
   answer and next state. The commands stand here and nowhere else: the test reads them from TLC. *)
EXTENDS Forest, TLC

CONSTANTS
  MaxCaps,    \* capabilities that are ever made
  Sessions,   \* connections to Home
  Printing    \* whether to print the transitions

VARIABLES forest, last
vars == <<forest, last>>

RW == {"read", "write"}
All == Authority(RW, Never, Whole)
Read == Authority({"read"}, Never, Whole)
Page == Authority({"read"}, Never, [from |-> 0, to |-> 1])
Brief == Authority({"read"}, 1, Whole)

(* Certificate chains below capability `root`: red's own link, red's link to blue, and one that
   ends soon. *)
Link(root, n, holder, authority) == [link |-> <<root, n>>, holder |-> holder, authority |-> authority]
Chains(root) ==
  LET own == Link(root, 1, "key1", All) IN
  {<<own>>, <<own, Link(root, 2, "key2", Page)>>, <<Link(root, 3, "key1", Brief)>>}

Session == CHOOSE s \in Sessions : TRUE

(* Commands about one capability, by the vat that may give them. *)
About(i) ==
  LET home == [vat |-> Home, cap |-> i] IN
  {[op |-> "mint", vat |-> Home, cap |-> i, object |-> 1, authority |-> All, session |-> s] :
     s \in {"none", Session}}
  \cup {[op |-> "derive", vat |-> Home, cap |-> i, authority |-> a, session |-> s] :
     a \in {All, Page, Brief}, s \in Sessions}
  \cup {[op |-> "redeem", vat |-> Home, cap |-> i, chain |-> c, session |-> Session] :
     c \in Chains(i)}
  \cup {[op |-> "deposit", vat |-> Home, cap |-> i, ticket |-> 1, receiver |-> Peer,
         authority |-> Read, until |-> u] : u \in {1, Never}}
  \cup {[op |-> "persist-check", vat |-> Home, cap |-> i, authority |-> Read]}
  \cup {[op |-> "revoke", vat |-> Home, cap |-> i]}
  \cup {[op |-> "revoke-link", vat |-> Home, cap |-> i, link |-> <<1, n>>, until |-> Never] :
     n \in 1..2}

(* The same by a vat that does not serve it. *)
Foreign(i) ==
  {[op |-> "derive", vat |-> Peer, cap |-> i, authority |-> Read, session |-> Session],
   [op |-> "redeem", vat |-> Peer, cap |-> i, session |-> Session,
    chain |-> <<Link(i, 1, "key1", All)>>],
   [op |-> "revoke", vat |-> Peer, cap |-> i]}

Anytime ==
  {[op |-> "mint-root", authority |-> All],
   [op |-> "edge", authority |-> All],
   [op |-> "sweep"], [op |-> "reclaim"], [op |-> "release"], [op |-> "restart"]}
  \cup {[op |-> "withdraw", vat |-> Home, ticket |-> 1, receiver |-> v, session |-> Session] :
     v \in {Home, Peer}}
  \cup {[op |-> "revoke-object", vat |-> v, object |-> 1] : v \in {Home, Peer}}
  \cup {[op |-> "end-session", vat |-> Home, session |-> s] : s \in Sessions}
  \cup {[op |-> "vat-died", vat |-> v, sessions |-> Sessions] : v \in {Home, Peer}}
  \cup (IF forest.now = 0 THEN {[op |-> "tick"]} ELSE {})

Commands == Anytime \cup UNION {About(i) \cup Foreign(i) : i \in Ids(forest)}

Init == forest = Empty /\ last = "none"

Next ==
  \E c \in Commands :
    LET answer == Apply(forest, c) IN
    /\ Len(answer.f.node) <= MaxCaps
    /\ forest' = answer.f
    /\ last' = [command |-> c, out |-> answer.out, count |-> answer.count, order |-> answer.order]

Spec == Init /\ [][Next]_vars

(* States differ by their forests only. *)
View == forest
(* Evaluated once for each transition out of each state. *)
PrintEach == IF Printing THEN PrintT(<<"transition", forest, last', forest'>>) ELSE TRUE

C1 == C1_WithinParent(forest)
C2 == C2_NoOrphans(forest) /\ C2_RefusedLinks(forest)
L2 == L2_DurableLines(forest)
Structure == LinksAreUnique(forest) /\ SlotsAddUp(forest)
=============================================================================
