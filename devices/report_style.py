"""Style sheet of the HTML report: light, sober, no fonts or files from elsewhere."""

STYLE = """
:root {
  color-scheme: light;
  --ink:#1c2430;
  --soft:#5b6472;
  --line:#e3e7ed;
  --good:#17805a;
  --bad:#c8372d;
  --open:#9a6a00;
}
* { box-sizing: border-box; }
body {
  margin:0;
  background:#f5f6f8;
  color:var(--ink);
  font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
}
main { max-width:1320px; margin:0 auto; padding:22px 26px 40px; }
header { display:flex; align-items:baseline; gap:14px; margin-bottom:14px; }
h1 { font-size:20px; margin:0; font-weight:650; letter-spacing:-.01em; }
header p { margin:0; color:var(--soft); }
.badge { padding:3px 11px; border-radius:99px; font-weight:600; font-size:13px; white-space:nowrap; }
.good { color:var(--good); background:#e4f4ed; }
.bad { color:var(--bad); background:#fbe9e7; }
.open { color:var(--open); background:#fbf1dc; }
section {
  background:#fff;
  border:1px solid var(--line);
  border-radius:10px;
  padding:16px 18px 14px;
  margin-bottom:16px;
}
h2 { font-size:16px; margin:0; }
.top { display:flex; align-items:center; gap:12px; margin-bottom:12px; }
.top span.where { color:var(--soft); margin-left:auto; text-align:right; }
.tiles { display:grid; grid-template-columns:repeat(8,1fr); gap:8px; margin-bottom:12px; }
.tile { border:1px solid var(--line); border-radius:8px; padding:8px 10px; min-width:0; }
.tile b {
  display:block;
  font-size:18px;
  font-weight:650;
  font-variant-numeric:tabular-nums;
  white-space:nowrap;
}
.tile small { color:var(--soft); display:block; }
.tile.over { border-color:#eaa8a2; background:#fdf4f3; }
.tile.over b { color:var(--bad); }
.tile.none b { color:var(--open); font-size:14px; line-height:26px; font-weight:500; }
.plots { display:grid; margin-bottom:10px; grid-template-columns:1fr 1fr; gap:14px; }
figure { margin:0; min-width:0; }
figure p { margin:4px 0 0; }
figcaption { font-weight:600; margin-bottom:2px; }
svg { width:100%; height:auto; display:block; font-family:inherit; }
table { border-collapse:collapse; width:100%; }
td { padding:3px 8px 3px 0; vertical-align:top; border-top:1px solid var(--line); }
tr:first-child td { border-top:0; }
td:first-child { color:var(--soft); white-space:nowrap; width:1%; padding-right:18px; }
ul.notes {
  margin:0 0 12px;
  padding:9px 14px 9px 28px;
  background:#fff8ec;
  border:1px solid #f1dfbd;
  border-radius:8px;
}
ul.notes.bad { background:#fdf4f3; border-color:#f0c8c4; color:inherit; }
details { margin-top:8px; }
summary { cursor:pointer; color:var(--soft); }
@media (max-width:900px) { .tiles { grid-template-columns:repeat(4,1fr); }
  .plots { grid-template-columns:1fr; } }
"""
