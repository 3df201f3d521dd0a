"""How the page of `nfportctl report` looks: one style sheet, for a phone, a desk and a printer, by day and by night.

Must not know what is shown. The one idea: no class says a colour, colours follow from what a thing is (in force,
waiting, wrong); tables become cards where there is no room for columns.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --line: #dfe3e8; --text: #1b2027; --quiet: #5b6675;
  --good: #1a7f4b; --wait: #8a5a00; --bad: #b3261e; --bar: #2f6fdb; --soft: #eef1f5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --card: #1a2027; --line: #2e3742; --text: #e6eaef; --quiet: #9aa6b4;
    --good: #5fce94; --wait: #e3b155; --bad: #ff8a80; --bar: #6fa4ff; --soft: #222a33;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
p { margin: .25rem 0; }
.quiet, footer { color: var(--quiet); font-size: .9rem; }
footer { padding-top: 2rem; padding-bottom: 3rem; }
.good { color: var(--good); }
.wait { color: var(--wait); }
.bad { color: var(--bad); }
.verdict {
  margin: 1.25rem 0 0; padding: .8rem 1rem; border-radius: .6rem; background: var(--card);
  border: 1px solid var(--line); border-left: .35rem solid currentColor; font-weight: 600;
}
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: .75rem 0 0; }
.tiles div, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem;
}
.tiles dt { color: var(--quiet); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.6rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.3; }
.card + .card { margin-top: .75rem; }
figure { margin: 0; }
.plot { display: grid; grid-template-columns: auto 1fr; column-gap: .6rem; }
.plot svg { display: block; width: 100%; height: 10rem; border-bottom: 1px solid var(--line); }
.scale { display: flex; flex-direction: column; justify-content: space-between; text-align: right; margin: -.6em 0; }
.scale, .times { color: var(--quiet); font-size: .8rem; font-variant-numeric: tabular-nums; }
.times { grid-column: 2; display: flex; justify-content: space-between; padding-top: .3rem; }
svg rect { fill: var(--bar); }
svg line { stroke: var(--line); vector-effect: non-scaling-stroke; }
.spark { display: inline-block; width: 7.5rem; height: 1.4rem; vertical-align: middle; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .8rem; }
th { color: var(--quiet); font-weight: 600; font-size: .82rem; border-bottom: 1px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
td { overflow-wrap: anywhere; min-width: 4rem; }
td.mono, td.who { min-width: 10rem; }
td.whole { overflow-wrap: normal; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre, td.mono { font-family: ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code, .mono { font-size: .92em; }
pre {
  margin: .6rem 0 0; padding: .6rem .8rem; background: var(--soft); border-radius: .4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem;
}
.state { font-weight: 600; white-space: nowrap; }
.state::before {
  content: ""; display: inline-block; width: .55em; height: .55em; margin-right: .45em; border-radius: 50%;
  background: currentColor;
}
.reason { display: block; color: var(--quiet); font-size: .9em; font-weight: 400; }
.finding { overflow-wrap: anywhere; }
.finding h3 { font-size: 1rem; margin: 0; font-weight: 600; }
.badge { font-size: .75rem; font-weight: 700; letter-spacing: .04em; text-transform: uppercase; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 44rem) {
  header, main, footer { padding-left: 1rem; padding-right: 1rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles dd { font-size: 1.35rem; overflow-wrap: anywhere; }
  .cards, .cards tbody { display: block; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards tr { display: block; padding: .6rem .9rem; }
  .cards tbody tr + tr { border-top: 1px solid var(--line); }
  .cards tbody tr + tr td { border: 0; }
  .cards td { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: .5rem; padding: .15rem 0; }
  .cards td::before { content: attr(data-label); color: var(--quiet); font-size: .82rem; padding-top: .1rem; }
  .cards td.number, .cards td.whole { text-align: left; white-space: normal; overflow-wrap: anywhere; }
  .cards td:first-child { display: block; font-size: 1.05rem; padding-bottom: .3rem; }
  .cards td:first-child::before, .cards td:empty { display: none; }
  .cards .reason { grid-column: 2; }
  .spark { width: 100%; }
}
@media print {
  @page { margin: 14mm; }
  :root {
    --page: #fff; --card: #fff; --line: #bbb; --text: #000; --quiet: #444; --soft: #f2f2f2;
    --good: #0a5c33; --wait: #6b4600; --bad: #9b1c14; --bar: #1f4fa3;
  }
  body { font-size: 10pt; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  header { padding-top: 0; }
  table { font-size: 8.5pt; }
  th, td, td.mono, td.who { padding: .25rem .4rem; min-width: 0; }
  td.mono, td.who { min-width: 9em; }
  td.mono { font-size: .85em; }
  .scroll { overflow: visible; }
  .spark { width: 4rem; }
  .plot svg { height: 7rem; }
  thead { display: table-header-group; }
  tr, .card, figure, .verdict { break-inside: avoid; }
  h2 { break-after: avoid; }
  svg rect, .state::before { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
