"""Whether a text is one that an expression allows, in time that no text and no expression can make explode.

All ways to read the text are followed at once, character by character, as sets of stacks of what is still to
come. Equal stacks are one object, so that what was worked out once is found again: it is a pushdown automaton
that is made deterministic where the text leads. It follows llama.cpp's reading of GBNF: characters are
code points, and there is no lexer that could take more than it should.
"""

from __future__ import annotations

from maxwell.constraints.expressions import Alt, Chars, Expr, Ref, Repeat, Rules, Seq

MOST_STACKS = 20_000  # ways to read a text at one place, before it is given up


class TooAmbiguousError(ValueError):
    """There are too many ways to read the text."""


class _Stack:
    """What is to come: `node`, then the stack `rest`; `rest` None is the end."""

    __slots__ = ("node", "rest")

    def __init__(self, node: Expr, rest: _Stack | None) -> None:
        self.node = node
        self.rest = rest


class _State:
    """Every stack that starts with a character, and whether the text may end here."""

    __slots__ = ("ends", "moves", "next")

    def __init__(self, moves: list[tuple[Chars, _Stack | None]], ends: bool) -> None:
        self.moves = moves
        self.ends = ends
        self.next: dict[str, _State] = {}


class Machine:
    """Reads texts by one set of rules without left recursion. Not shared between threads: make one a text."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._stacks: dict[tuple[int, int], _Stack] = {}
        self._states: dict[tuple[frozenset[int], bool], _State] = {}
        self._fewer: dict[int, Expr] = {}
        self._start = self._state([self._push(Ref("root"), None)])

    def misfit(self, text: str) -> int | None:
        """Where the text does not fit; None where it does.

        That is the index of the first character that no reading allows, or `len(text)` where
        more must follow.

        Raises:
            TooAmbiguousError: There are more ways to read it than can be followed.
        """
        state = self._start
        for index, char in enumerate(text):
            after = state.next.get(char)
            if after is None:
                found = [rest for allowed, rest in state.moves if char in allowed]
                if not found:
                    return index
                after = state.next[char] = self._state(found)
            state = after
        return None if state.ends else len(text)

    def _push(self, node: Expr, rest: _Stack | None) -> _Stack:
        key = (id(node), id(rest))
        found = self._stacks.get(key)
        if found is None:
            found = self._stacks[key] = _Stack(node, rest)
        return found

    def _state(self, stacks: list[_Stack | None] | list[_Stack]) -> _State:
        todo: list[_Stack | None] = list(stacks)
        seen = set(map(id, todo))
        ready: list[_Stack] = []
        ends = False
        while todo:
            stack = todo.pop()
            if stack is None:
                ends = True
            elif isinstance(stack.node, Chars):
                ready.append(stack)
            else:
                new = [s for s in self._opened(stack.node, stack.rest) if id(s) not in seen]
                seen.update(map(id, new))
                todo += new
            if len(seen) > MOST_STACKS:
                raise TooAmbiguousError(f"there are more than {MOST_STACKS} ways to read it")
        key = (frozenset(map(id, ready)), ends)
        if key not in self._states:
            moves = [(s.node, s.rest) for s in ready if isinstance(s.node, Chars)]
            self._states[key] = _State(moves, ends)
        return self._states[key]

    def _opened(self, node: Expr, rest: _Stack | None) -> list[_Stack | None]:
        """The stacks that `node` before `rest` comes to, one step nearer to characters."""
        match node:
            case Seq(items):
                for item in reversed(items):
                    rest = self._push(item, rest)
                return [rest]
            case Alt(options):
                return [self._push(option, rest) for option in options]
            case Repeat(item, least, most):
                again = rest if most == 1 else self._push(self._one_fewer(node), rest)
                taken = self._push(item, again)
                return [taken] if least else [taken, rest]
            case Ref(name):
                return [self._push(self._rules[name], rest)]
            case Chars():
                return []

    def _one_fewer(self, node: Repeat) -> Expr:
        if node.least == 0 and node.most is None:
            return node
        found = self._fewer.get(id(node))
        if found is None:
            most = None if node.most is None else node.most - 1
            found = self._fewer[id(node)] = Repeat(node.item, max(node.least - 1, 0), most)
        return found
