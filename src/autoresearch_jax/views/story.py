"""What happened under a tag as a story to read in two minutes, in which each number has its record.

`tell` makes it of the records alone, so that it can be told again to check a report. It claims no
more than `statistics.Claims` does.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoresearch_jax.common.text import clean
from autoresearch_jax.loop.statistics import AUDIT_RUNS, CONFIDENCE
from autoresearch_jax.records.costs import PERSON
from autoresearch_jax.records.events import Audited, Pruned, Status
from autoresearch_jax.records.experiment import DISTURBED, Lesson
from autoresearch_jax.views.entries import Entry
from autoresearch_jax.views.story_parts import (
    WHOLE,
    Line,
    Piece,
    Scores,
    Section,
    Story,
    StoryData,
    Table,
    command,
    counted,
    fact,
    line,
    listing,
    of,
    quote,
)
from autoresearch_jax.views.story_themes import Theme, themes
from autoresearch_jax.views.summary import Summary, duration, largest_gains

# Listed at most:
ROWS, AGENTS, LESSONS, VAIN, NUMBERS = 6, 3, 4, 3, 8
WORDS = 90  # characters of a description, a lesson or a reason


def tell(title: str, listed: Sequence[Entry], summary: Summary, data: StoryData) -> Story:
    """Return the story of the experiments of a tag or of a results.tsv."""
    scores = Scores.of(summary.claims.noise)
    return _Teller(listed, summary, data, scores, themes(listed, data)).story(title)


@dataclass(frozen=True)
class _Teller:
    """What the parts of a story are told from."""

    listed: Sequence[Entry]
    summary: Summary
    data: StoryData
    scores: Scores
    themes: Sequence[Theme]

    def story(self, title: str) -> Story:
        stack = self.summary.claims.pruned
        sections = [Section("The run", tuple(self.overview())), self.tried()]
        if stack is not None:
            sections.append(self.pruned(stack))
        if stack is None or stack.n != self.summary.claims.best:
            sections.append(self.kept())
        for heading, lines in (
            ("What was learned", self.learned()),
            ("What it cost", self.cost()),
            ("How it was measured", self.measured()),
        ):
            sections.append(Section(heading, tuple(lines)))
        told = tuple(one for one in sections if one.lines)
        return Story(title, self.headline(), told)

    # ------------------------------------------------------------------------------ the result

    def headline(self) -> Line:
        """Return what was achieved in one sentence, no stronger than the evidence."""
        claims, best, start = self.summary.claims, self.summary.best, self.summary.start
        if best is None or best.val_bpb is None or start is None:
            return line("No experiment has a score yet.")
        if claims.audit is not None:
            return self.audited(claims.audit)
        first = next(one.n for one in self.listed if one.val_bpb is not None)
        before = self.scores.score(start, first)
        if best.val_bpb >= start:
            return line("Nothing was better than the baseline: val_bpb is ", before, ".")
        after = self.scores.score(best.val_bpb, best.n)
        return line(
            "val_bpb fell from ", before, " to ", after, ", as single runs scored it. That is not "
            "audited, and the lowest of many noisy scores is partly luck.",
        )  # fmt: skip

    def audited(self, one: Audited) -> Line:
        def said(words: str, field: str) -> Piece:
            return fact(words, f"audit: {field}", one.best)

        low, high = -one.high, -one.low  # of the change, where a gain is negative
        words = line(
            "Audited: val_bpb ", said(self.scores.change(-one.gain), "gain"),
            " from the baseline to experiment ", said(str(one.best), "best"),
            " (", said(f"{one.confidence:.0%}", "confidence"),
            " interval ", said(self.scores.change(low), "high"),
            " to ", said(self.scores.change(high), "low"),
            "; ", said(f"{one.baseline_runs} and {one.best_runs}", "runs"),
            f" fresh runs, {one.split} text).",
        )  # fmt: skip
        if self.scores.rounded(low) <= 0 <= self.scores.rounded(high):
            words += line(" The interval contains zero, so this shows no gain.")
        best = self.summary.claims.best
        if best is not None and best != one.best:
            words += line(
                " What was kept since then, up to experiment ", of(best), ", is not audited."
            )
        return words

    # --------------------------------------------------------------------------------- sections

    def overview(self) -> Iterator[Line]:
        found = self.summary
        words = line(counted(found.experiments, "experiment"))
        if found.seconds is not None:
            seconds = fact(duration(found.seconds), f"{WHOLE}: seconds of commands")
            words += line(" in ", seconds)
        began = [one.started for one in self.listed if one.started]
        if began:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(began)))
            words += line(" from ", fact(day, f"{WHOLE}: start"))
        words += line(": ", counted(found.improvements, "kept improvement"))
        disturbed = sum(DISTURBED in one.description for one in self.listed)
        for number, noun in (
            (found.crashes, "crash"),
            (disturbed, "disturbed experiment"),
            (self.data.unused, "unused answer"),
            (self.data.taken_back, "dropped experiment"),
        ):
            words += line(", ", counted(number, noun)) if number else ()
        yield words + line(".")
        by = Counter("a person" if e.agent == PERSON else e.agent for e in self.listed if e.agent)
        if by:
            agents = [
                line(quote(clean(agent, 30)), " ", fact(str(number), f"{WHOLE}: agents"))
                for agent, number in sorted(by.items(), key=lambda item: (-item[1], item[0]))
            ]
            yield line("Proposed by ") + listing(agents, AGENTS, "agent") + line(".")
        if self.data.learned:
            yield line("It began with what another tag found: ", quote(self.data.learned), ".")

    def tried(self) -> Section:
        """Return the themes of the experiments, those with the most that was kept first."""
        rows = []
        for theme in self.themes[:ROWS]:
            lowest, change = theme.lowest, line("none")
            if lowest is not None:
                change = line(self.change(lowest), " in ", of(lowest.n))
            tried = fact(str(len(theme.tried)), f"{theme.record}: number")
            kept = fact(str(len(theme.kept)), f"{theme.record}: status")
            rows.append((line(quote(theme.name)), line(tried), line(kept), change))
        if not rows:
            return Section("What was tried", ())
        lines = [line(
            "An experiment counts in each theme that it touches. The lowest change is that of one "
            "run, from the best before it."
        )]  # fmt: skip
        lines += _besides(len(self.themes) - ROWS, "more theme")
        table = Table(("theme", "tried", "kept", "lowest change"), tuple(rows))
        return Section("What was tried", tuple(lines), table)

    def kept(self) -> Section:
        """Return what was kept, the largest change first."""
        gains = largest_gains(self.listed)
        rows = [
            (line(of(one.n)), line(self.change(one)), line(quote(clean(one.description, WORDS))))
            for one in gains[:ROWS]
        ]
        if not rows:
            return Section("What was kept", ())
        lines = [line(
            "These are the changes when decided: a score by which an experiment was chosen is too "
            "low by luck."
        )]  # fmt: skip
        lines += _besides(len(gains) - ROWS, "smaller improvement")
        return Section("What was kept", tuple(lines), Table(("n", "change", "what"), tuple(rows)))

    def pruned(self, stack: Pruned) -> Section:
        """Return what each change does that remained after a pruning."""
        said = {one.n: one.description for one in self.listed}
        rows = []
        for one in sorted(stack.effects, key=lambda one: one.change)[:ROWS]:
            effect, low, high = map(self.scores.change, (one.change, one.low, one.high))
            record = f"of experiment {one.n}"
            words = line(quote(clean(said.get(one.n, ""), WORDS)))
            if one.others:
                words += line(" together with ") + _numbers(one.others) + line(", on top of it")
            rows.append((
                line(of(one.n)),
                line(fact(effect, f"pruning: effect {record}", one.n)),
                line(fact(f"{low} to {high}", f"pruning: interval {record}", one.n)),
                words,
            ))  # fmt: skip
        lines = [line(
            "Each change was taken out of the best to see what it still does; an effect is val_bpb "
            "with it instead of without it. The intervals are of ",
            fact(f"{stack.confidence:.0%}", "pruning: confidence"), ".",
        )]  # fmt: skip
        lines += _besides(len(stack.effects) - ROWS, "weaker change")
        if stack.removed:
            removed = _numbers(stack.removed)
            lines.append(line("Taken out, because val_bpb is no worse without them: ") + removed
                         + line("."))  # fmt: skip
        if self.summary.claims.best != stack.n:
            lines.append(line("What was kept since experiment ", of(stack.n), " is not pruned."))
        table = Table(("n", "effect", "interval", "what"), tuple(rows)) if rows else None
        return Section("What still matters after pruning", tuple(lines), table)

    def learned(self) -> Iterator[Line]:
        """Yield lessons of agents, the themes that brought nothing, and why experiments crashed."""
        yield from map(self.lesson, self.data.lessons[:LESSONS])
        if (more := len(self.data.lessons) - LESSONS) > 0:
            lessons = command("autoresearch-jax lessons")
            yield line(counted(more, "more lesson"), ": ", lessons, ".")
        vain = sorted((one for one in self.themes if not one.kept), key=lambda one: -len(one.tried))
        if vain:
            found = [
                line(quote(one.name), " (", fact(str(len(one.tried)), f"{one.record}: number"),
                     " tried)")
                for one in vain
            ]  # fmt: skip
            yield line("Nothing was kept from ") + listing(found, VAIN, "more theme") + line(".")
        crashed = [one for one in self.listed if one.status == Status.CRASH]
        if crashed:
            last = crashed[-1]
            reason = clean(self.data.reasons.get(last.n, "") or last.description, WORDS)
            yield line("The last crash was experiment ", of(last.n), ": ", quote(reason), ".")

    def lesson(self, one: Lesson) -> Line:
        words = line(quote(clean(one.text, WORDS)))
        if one.n is None:
            return words + line(" (not measured)")
        words += line(" (experiment ", of(one.n), f", {one.status}")
        if one.change is not None:
            change = fact(self.scores.change(one.change), f"experiment {one.n}: change", one.n)
            words += line(", ", change)
        return words + line(")")

    def cost(self) -> Iterator[Line]:
        spent = self.summary.spent
        answers = "answer" if spent.asked == 1 else "answers"
        found = [
            line(fact(words, f"{WHOLE}: {record}"), f" {after}")
            for value, words, record, after in (
                (spent.usd, f"{spent.usd:,.2f}", "dollars", "dollars"),
                (spent.tokens, f"{spent.tokens:,}", "tokens", "tokens"),
                (spent.asked, f"{spent.asked:,}", answers, f"{answers} of agents"),
                (spent.unpriced, f"{spent.unpriced:,}", "prices", "of them without a price"),
                (spent.agent_s, duration(spent.agent_s), "seconds of agents", "of thinking"),
                (spent.accelerator_s, duration(spent.accelerator_s), "seconds of the device",
                 "of trainings and scorings on the device"),
            )
            if value
        ]  # fmt: skip
        if found:
            yield listing(found, len(found), "") + line(".")

    def measured(self) -> Iterator[Line]:
        claims, best, tag = self.summary.claims, self.summary.best, self.data.tag
        if not tag:
            yield line("This is from a results.tsv alone, which has no noise, cost or audit.")
            return
        facts = [
            line(f"{name} ", fact(value, f"{WHOLE}: {name}"))
            for name, value in self.data.facts.items()
        ]
        if facts:
            yield line("The scores rest on: ") + listing(facts, len(facts), "") + line(".")
        if (noise := claims.noise) is not None:
            sd, low, high = (
                fact(words, f"{WHOLE}: repeated runs")
                for words in map(self.scores.plain, (noise.sd, noise.low, noise.high))
            )
            confidence = fact(f"{CONFIDENCE:.0%}", f"{WHOLE}: repeated runs")
            yield line("Noise of a score: ", sd, " bits per byte (standard deviation, ",
                       confidence, " interval ", low, " to ", high, ").")  # fmt: skip
        if claims.runs > 1:
            runs = fact(f"{claims.runs:.2f}", f"{WHOLE}: runs of decisions")
            yield line("A decision took ", runs, " runs on average.")
        if (drift := claims.drift) is not None:
            record = f"experiment {drift.n}: repeats"
            change = fact(self.scores.change(drift.change), record, drift.n)
            yield line("The machine may have drifted: when experiment ", of(drift.n),
                       " ran again, val_bpb was ", change, " from before.")  # fmt: skip
        if best is None:
            return
        if claims.audit is None and claims.best is not None:
            again = command(f"autoresearch-jax verify --audit {AUDIT_RUNS}")
            yield line("To measure the gain again: ", again, ".")
        yield line(
            "The best file: ", command(f"git show autoresearch/{tag}:train.py"),
            ". To compute its score again: ", command(f"autoresearch-jax verify {best.n}"),
            ". One experiment in full: ", command(f"autoresearch-jax show {best.n}"),
            ". To check this report: ", command("autoresearch-jax report --check -o DIR"), ".",
        )  # fmt: skip

    def change(self, one: Entry) -> Piece:
        assert one.change is not None
        return fact(self.scores.change(one.change), f"experiment {one.n}: change", one.n)


def _besides(more: int, noun: str) -> list[Line]:
    """Return a line about what a table does not show, if there is more."""
    return [line("Not shown: ", counted(more, noun), ".")] if more > 0 else []


def _numbers(numbers: Sequence[int]) -> Line:
    return listing([line(of(n)) for n in numbers], NUMBERS, "more experiment")
