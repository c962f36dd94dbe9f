# %% imports
import base64, html, math, re, threading, warnings
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
import ipywidgets as W, numpy as np, torch
from tune_a_video_nbs.show import PALETTE, clips_html, _data_uri, _row
from tune_a_video_nbs.sprites import score_edit
from tune_a_video_nbs.ddpm import save_atomic
from tune_a_video_nbs.ldm import bundled, check_prompt, known_words, model_path, quiet
from tune_a_video_nbs.video import read_clip, write_clip
from tune_a_video_nbs.tune import StopTuning, trainable_names
from tune_a_video_nbs.edit import TuneAVideoPipeline
from tune_a_video_nbs.evaluate import frame_consistency, text_alignment

# %% choices
SAMPLE = files("tune_a_video_nbs")/"assets"/"star.mp4"

@dataclass(frozen=True)
class Choices:
    "What is in the fields, as typed."
    clip: str = "sample"    # the shipped one; or a file or folder, as `read_clip`
    caption: str = "a red star is bouncing on the grass"
    base: str = "sprites"   # a bundled model, a folder, or a Hub name
    frames: str = "8"
    start: str = "0"
    stride: str = "1"
    size: str = ""          # side of the square cut from the middle, in pixels
    steps: str = ""         # of tuning
    lr: str = ""
    seed: str = "0"
    every: str = "20"       # tuning steps between previews
    prompts: str = "a blue star is bouncing on the grass\na red heart is bouncing on the grass\na red star is bouncing on a night sky"
    draws: str = ""         # steps of inversion and of sampling
    guidance: str = ""

    def edits(self) -> list[str]: return [line.strip() for line in self.prompts.splitlines() if line.strip()]

# %% number
RULES = dict(frames=(int, 2, 10_000), start=(int, 0, 10**9), stride=(int, 1, 10**6), size=(int, 8, 10_000), steps=(int, 1, 10**6), lr=(float, 1e-9, 1),
             seed=(int, 0, 2**63 - 1), every=(int, 1, 10**6), draws=(int, 1, 1000), guidance=(float, 0, 100))   # kind, least, most
OPTIONAL = ("size", "steps", "lr", "draws", "guidance")   # the model knows what suits it

def number(name: str, # a key of `RULES`
           text: str, # as typed
          ):          # int or float; `None` for nothing, where that is allowed
    "Raises `ValueError` with what was typed and what may be."
    kind, least, most = RULES[name]
    if not text.strip() and name in OPTIONAL: return None
    try: value = kind(text)
    except ValueError: value = math.nan
    if least <= value <= most: return value
    rest = "; or nothing, for what suits the model" if name in OPTIONAL else ""
    raise ValueError(f"{text!r}: give a {'whole ' if kind is int else ''}number from {least:,} to {most:,}{rest}")

# %% problems
def complaint(test, *args) -> str: # empty if `test` has nothing to say
    "What one of the library's own checks raises or warns of, as text."
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try: test(*args)
        except (ValueError, OSError, UserWarning) as e: return str(e)
    return ""

def side(pipe, size: str) -> int: # pixels
    "What was typed, or the model's own. Raises `ValueError` on what its VAE cannot halve often enough."
    m = 2**(len(pipe.vae.config.block_out_channels) - 1)
    value = number("size", size) or pipe.unet.config.sample_size*m
    if value % m: raise ValueError(f"{value} is no multiple of {m}, as this model needs: try {max(1, round(value/m))*m}")
    return value

def _said(tokenizer, text):
    if not text: raise ValueError("nothing is written here: say in words what is to be seen")
    if tokenizer: check_prompt(tokenizer, text)

def problems(c: Choices,
             job: str,  # "tune" or "edit"
             pipe=None, # if it is there, words and size are held against it, too
            ) -> dict:  # field -> what was seen and what to do
    "All that is wrong with what a job would use, found without beginning it."
    tuning, tokenizer = job == "tune", pipe and pipe.tokenizer
    found = [(k, complaint(number, k, getattr(c, k))) for k in RULES if (k in ("draws", "guidance")) != tuning]
    if tuning: found += [("caption", complaint(_said, tokenizer, c.caption.strip())), ("base", complaint(model_path, c.base.strip()))]
    else: found += [("prompts", complaint(_said, tokenizer, p)) for p in c.edits() or [""]]
    if tuning and pipe: found += [("size", complaint(side, pipe, c.size))]
    return {k: v for k, v in found[::-1] if v}   # of several about one field, the first

# %% refused
READING = ("clip", "frames", "start", "stride", "size")   # what decides which pixels are read

class Refused(ValueError):
    "Something typed cannot be used; `problems` says what, field by field."
    def __init__(self, problems: dict):
        super().__init__("; ".join(f"{k}: {v}" for k, v in problems.items())); self.problems = problems

def read(c: Choices,
         side: int = None, # of the square to cut, in pixels; the clip's own shape without
        ) -> np.ndarray:   # uint8 (f, h, w, 3)
    "The chosen frames. Raises `Refused`, naming the field that is to blame."
    try: return read_clip(SAMPLE if c.clip == "sample" else c.clip, number("frames", c.frames), side, number("start", c.start), number("stride", c.stride))
    except (OSError, ValueError) as e: raise Refused({"frames" if " asked" in str(e) else "clip": str(e)}) from e

def uploaded(value) -> tuple|None: # `FileUpload.value`: a dict in ipywidgets 7, a tuple in 8 -> (name, bytes)
    "The newest file; of its name only the last part, or a file called `../../x` would land elsewhere."
    found = [(k, v["content"]) for k, v in value.items()] if isinstance(value, dict) else [(v["name"], v["content"]) for v in value]
    return (re.split(r"[/\\]", found[-1][0])[-1], bytes(found[-1][1])) if found else None

# %% score
def score(pipe, edit, prompt: str, clip, caption: str,
          judge: str,  # the CLIP for other bases than the miniature
         ) -> dict:    # what is measured -> its value, as text
    "Against the exact answer, where the miniature's grammar gives one; else as a CLIP sees it."
    share, own = lambda x: "-" if x is None else f"{x:.0%}", bool(known_words(pipe.tokenizer))
    try:
        s = score_edit(edit, prompt, clip, caption if own else "")   # no grammar, no exact answer
        return {"asked for and there": share(s["edited"]), "kept": share(s["kept"]), "off its path": f"{s['path_error']:.1f} px"}
    except ValueError: judge = "sprites" if own else judge
    try: return {"CLIP: text": f"{text_alignment(edit, prompt, judge):.1f}", "CLIP: frames alike": f"{frame_consistency(edit, judge):.3f}"}
    except (OSError, ValueError) as e: return {"CLIP": str(e)}

# %% code
_TUNE = """import torch
from tune_a_video_nbs.edit import TuneAVideoPipeline
from tune_a_video_nbs.studio import SAMPLE
from tune_a_video_nbs.video import read_clip, write_clip

clip = read_clip({clip}, {frames}, {size}, start={start}, stride={stride})
pipe = TuneAVideoPipeline.from_pretrained({base!r}).to({device!r}, {dtype})
pipe.tune(clip, {caption!r}, steps={steps}, lr={lr}, generator=torch.Generator().manual_seed({seed}))
pipe.save_tuned("tuned.safetensors")
"""
_EDIT = """
prompts = [{prompts}]
noise = pipe.invert(clip, num_inference_steps={draws})
for i, prompt in enumerate(prompts, 1):
    edit = pipe(prompt, latents=noise, num_inference_steps={draws}, guidance_scale={guidance}).frames[0]
    write_clip(f"edit-{{i:02}}.mp4", edit)
"""

def code(tuned: dict,         # as `Session.tuned`
         edited: dict = None, # as `Session.edited`
        ) -> str:             # Python that runs as it stands
    "What was clicked, as a program."
    sample = tuned["clip"] == "sample"
    text = _TUNE.format(**tuned | dict(clip="SAMPLE" if sample else repr(tuned["clip"])))
    if not sample: text = text.replace("from tune_a_video_nbs.studio import SAMPLE\n", "")
    return text + (_EDIT.format(**edited | dict(prompts=",\n           ".join(map(repr, edited["prompts"])))) if edited else "")

# %% load
def _load(self, c):
    "The base, if it is another than last time; and a copy of what will learn, to begin from again."
    if self.base == c.base: return
    self.pipe, self.base, self.tuned = None, None, None
    self.say(f"Loading {c.base}"); quiet()
    try: pipe = TuneAVideoPipeline.from_pretrained(c.base.strip())
    except (OSError, ValueError) as e: raise Refused(dict(base=str(e).strip().splitlines()[0])) from e
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" and c.base not in bundled() else torch.float32
    pipe.to(device, dtype).set_progress_bar_config(disable=True)
    names = set(trainable_names(pipe.unet))
    self.fresh = {n: p.detach().cpu().clone() for n, p in pipe.unet.named_parameters() if n in names}
    self.pipe, self.base, self.where = pipe, c.base, dict(device=device, dtype=dtype)

def _check(self, c, job):
    found = problems(c, job, self.pipe if self.base == c.base else None)
    if found: raise Refused(found)
    if self.stopping.is_set(): raise StopTuning

# %% tunejob
PREVIEW = 8   # steps of inversion, and of sampling, for a glance

def _tune(self, c):
    "Learn the clip, from the image model as it was: then what was clicked can be done again."
    _check(self, c, "tune"); _load(self, c); _check(self, c, "tune")
    pipe, own = self.pipe, self.pipe.settings
    clip = read(c, side(pipe, c.size))
    pipe.unet.load_state_dict(self.fresh, strict=False)
    self.clear(clip)
    n, every = number("steps", c.steps) or own["tune_steps"], number("every", c.every)
    glance = next((p for p in c.edits() if not complaint(_said, pipe.tokenizer, p)), c.caption)
    def watch(step, loss, weights):
        self.losses.append(loss); self.tell("loss"); self.say(f"Learning the clip: step {step + 1} of {n}", (step + 1)/n)
        if (step + 1) % every == 0: self.preview = step + 1, glance, self.draw(glance, self.invert(PREVIEW), PREVIEW); self.tell("preview")
        if self.stopping.is_set(): raise StopTuning
    how = dict(lr=number("lr", c.lr) or own["lr"], seed=number("seed", c.seed))
    pipe.tune(clip, c.caption, steps=n, lr=how["lr"], generator=torch.Generator().manual_seed(how["seed"]), callback=watch)
    self.choice, self.tuned = c, asdict(c) | how | self.where | dict(steps=len(self.losses), size=clip.shape[1])
    pipe.save_tuned(self.folder/"tuned.safetensors"); self.tell("tuned")
    return f"Learned {n} steps." if len(self.losses) == n else f"Stopped after {len(self.losses)} of {n} steps. What was learned is kept: go on with Edit."

# %% editjob
FIXED = ("clip", "caption", "base", "frames", "start", "stride", "size")   # what an edit shares with its tuning

def _edit(self, c):
    "Invert once, draw each prompt; what is drawn when Stop comes stays."
    if not self.tuned: raise Refused(dict(prompts="nothing is learned yet: press Tune first"))
    other = {k: f"was {getattr(self.choice, k)!r} when the clip was learned: put it back, or press Tune again" for k in FIXED if getattr(c, k) != getattr(self.choice, k)}
    if other: raise Refused(other)
    _check(self, c, "edit")
    own, prompts = self.pipe.settings, c.edits()
    n, guidance = number("draws", c.draws) or own["num_inference_steps"], number("guidance", c.guidance)
    how = dict(draws=n, guidance=own["guidance_scale"] if guidance is None else guidance)
    self.edits, self.edited = [], None; self.tell("edits")
    total = n*(len(prompts) + 1)
    if n not in self.noise: self.say("Inverting the clip"); self.noise[n] = self.invert(n, 0, total)
    for i, p in enumerate(prompts, 1):
        self.say(f"Drawing {i} of {len(prompts)}: {p}")
        frames = self.draw(p, self.noise[n], n, how["guidance"], n*i, total)
        file = write_clip(self.folder/f"edit-{i:02}.mp4", frames)
        self.edits.append(dict(prompt=p, clip=frames, file=file, score=score(self.pipe, frames, p, self.clip, c.caption, self.judge)))
        self.edited = how | dict(prompts=[e["prompt"] for e in self.edits]); self.tell("edits")
    return f"Drew {len(prompts)}."

# %% session
class Session:
    "The method without a screen: what was chosen, what is going on, what came of it. `tell` hears which part changed."
    tune, edit = _tune, _edit

    def __init__(self, folder="studio", # gets uploads, tuned weights and edits
                 tell=lambda part: None, # called with "problems", "status", "clip", "loss", "preview", "tuned" or "edits"
                 judge="openai/clip-vit-base-patch32"): # the CLIP that scores edits by other bases than the miniature
        self.folder, self.tell, self.judge, self.choices = Path(folder), tell, judge, Choices()
        self.lock, self.stopping, self.busy, self.job, self.status, self.done, self.problems = threading.Lock(), threading.Event(), False, "tune", "", 0., {}
        self.pipe = self.base = self.seen = None
        self.clear(None)

    def clear(self, clip):
        "Forget what was learned and drawn."
        self.clip, self.tuned, self.edited, self.preview, self.losses, self.edits, self.noise = clip, None, None, None, [], [], {}
        for part in ("loss", "preview", "tuned", "edits"): self.tell(part)

    def say(self, status, done=None):
        self.status, self.done = status, self.done if done is None else done
        self.tell("status")

    def press(self, job: str) -> threading.Thread|None: # "tune" or "edit"; no thread if one is at work
        "Do it in a thread, so that who pressed is free to press Stop."
        if not self.lock.acquire(blocking=False): return None
        self.stopping.clear()
        self.busy, self.job, self.problems = True, job, {}
        self.tell("problems"); self.say("Looking at what was typed", 0.)
        thread = threading.Thread(target=self._work, args=(job, self.choices), daemon=True); thread.start()
        return thread

    def see(self, side=96):
        "Read what is chosen, small, in a thread of its own; if the choice has changed meanwhile, that reading counts no more."
        c = self.choices
        def work():
            found, clip = {k: v for k in READING[1:] if (v := complaint(number, k, getattr(c, k)))}, None
            if not found:
                try: clip = read(c, side)
                except Refused as e: found = e.problems
            if any(getattr(c, k) != getattr(self.choices, k) for k in READING): return
            self.seen, self.problems = clip, {k: v for k, v in self.problems.items() if k not in READING} | found
            self.tell("clip"); self.tell("problems")
        threading.Thread(target=work, daemon=True).start()

    def stop(self):
        "What is at work ends after its step, and keeps what it has."
        self.stopping.set()

    def _work(self, job, c):
        "An error would die with its thread: it becomes the status instead."
        try: status = getattr(self, job)(c)
        except Refused as e: self.problems, status = e.problems, "Not begun: something typed cannot be used, see the red lines."; self.tell("problems")
        except StopTuning: status = f"Stopped; {len(self.edits)} drawn." if job == "edit" else "Stopped before there was anything to keep."
        except Exception as e: status = f"That went wrong: {type(e).__name__}: {e}"
        finally: self.busy = False; self.lock.release()
        self.say(status)

    def _tick(self, at, total):
        "What the pipeline calls after each step: counts, and ends it when asked to."
        def callback(pipe, i, t, state):
            if self.stopping.is_set(): raise StopTuning
            if total: self.say(self.status, (at + i + 1)/total)
        return callback

    def invert(self, n, at=0, total=0): return self.pipe.invert(self.clip, num_inference_steps=n, callback_on_step_end=self._tick(at, total))

    def draw(self, prompt, noise, n, guidance=None, at=0, total=0):
        return self.pipe(prompt, latents=noise, num_inference_steps=n, guidance_scale=guidance, callback_on_step_end=self._tick(at, total)).frames[0]

# %% html
def in_widget(page: str) -> str: # as `clips_html` gives
    "An HTML widget runs no `<script>`: a picture of one pixel runs it instead, once it has loaded."
    body, script = page.removesuffix("</script>").split("<script>")
    return f'{body}<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=" onload="{html.escape(script)}">'

def strip_html(clip) -> str: # uint8 (f, h, w, 3)
    "Its frames in a row, as one picture."
    return f'<img class="tav-strip" alt="{len(clip)} frames" src="{_data_uri(_row(clip))}"><div class="tav-dim">the {len(clip)} frames it will learn</div>'

def loss_html(losses: list, window: int = 20) -> str:
    "Each step's loss as a dot, their running mean as a line, on a log scale: the loss of one step depends on the noise level it drew."
    if len(losses) < 2: return ""
    logs = np.log10(np.maximum(losses, 1e-9)); lo, hi = logs.min(), max(logs.max(), logs.min() + .1)
    xy = lambda v: [f"{10 + 380*i/(len(v) - 1):.1f},{10 + 130*(hi - y)/(hi - lo):.1f}" for i, y in enumerate(v)]
    mean = [np.log10(np.mean(losses[max(0, i + 1 - window):i + 1])) for i in range(len(losses))]
    dots = "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2"/>' for p in xy(logs))
    say = f"loss of {len(losses)} steps; mean of the last {min(window, len(losses))}: {10**mean[-1]:.3f}"
    return (f'<svg viewBox="0 0 400 150" class="tav-loss" role="img" aria-label="{say}"><g fill="{PALETTE[6]}" opacity=".4">{dots}</g>'
            f'<polyline points="{" ".join(xy(mean))}" fill="none" stroke="{PALETTE[0]}" stroke-width="2"/></svg><div class="tav-dim">{say}</div>')

def link_html(path: Path, words: str, most: int = 2**24) -> str: # bytes that a link may carry
    "A download that needs no server: the file itself is in the link. A large one is only named."
    if path.stat().st_size > most: return f"{html.escape(words)}: <code>{html.escape(str(path))}</code>"
    kind = "video/mp4" if path.suffix == ".mp4" else "application/octet-stream"
    return f'<a download="{html.escape(path.name)}" href="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}">{html.escape(words)}</a>'

def table_html(edits: list[dict]) -> str:
    "One line an edit: its words, scores, and file."
    names = list(dict.fromkeys(k for e in edits for k in e["score"]))
    line = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in cells) + "</tr>"
    rows = [[*(html.escape(str(v)) for v in (e["prompt"], *(e["score"].get(n, "") for n in names))), link_html(e["file"], "mp4")] for e in edits]
    return f'<table class="tav-table">{line("th", ["edit", *map(html.escape, names), ""])}{"".join(line("td", r) for r in rows)}</table>'

# %% style
_CSS = """<style>
.tav-studio{max-width:900px}.tav-card{border:1px solid #8885;border-radius:10px;padding:16px 20px;margin:0 0 16px}
.tav-card h3{font:600 17px/1.3 system-ui,sans-serif;margin:0 0 4px}.tav-card h3 span{color:#0072b2;padding-right:10px}
.tav-studio .widget-label{width:auto;flex:none;text-align:left;font-size:12px;opacity:.75;height:20px;line-height:20px}
.tav-studio input[type=text],.tav-studio textarea{width:100%!important;box-sizing:border-box;flex:none}.tav-studio .widget-text,.tav-studio .widget-textarea{align-items:stretch}
.tav-studio .widget-html-content{line-height:1.5}.tav-studio a{color:var(--jp-content-link-color,#0072b2);text-decoration:underline}
.tav-bad input,.tav-bad textarea{border:2px solid #c62828!important}.tav-note{color:#c62828;font-size:13px}
.tav-dim{opacity:.75;font-size:12px}.tav-strip{display:block;max-width:100%;max-height:96px;border-radius:6px;margin-top:8px}
.tav-loss{width:320px;border-bottom:1px solid #8885}.tav-table td,.tav-table th{padding:2px 16px 2px 0;text-align:left;font-size:13px}
.tav-studio pre{background:#8882;border-radius:8px;padding:12px;overflow:auto;font-size:12px;line-height:1.4}</style>"""
FIELDS = dict(clip=("Clip: sample, a file, or a folder of pictures", "600px"), caption=("What it shows", "100%"), base=("Base: a bundled model, a folder, or a Hub name", "330px"),
              frames=("Frames", "110px"), start=("First frame", "110px"), stride=("Take every", "110px"), size=("Side, in pixels", "110px"),
              steps=("Steps", "110px"), lr=("Learning rate", "110px"), seed=("Seed", "110px"), every=("Preview every", "110px"),
              prompts=("Edits, one a line", "100%"), draws=("Steps", "110px"), guidance=("Guidance", "110px"))   # label, width

# %% widgets
def _field(name):
    "A text box under its label, with its line for a complaint."
    label, width = FIELDS[name]
    kind = W.Textarea if name == "prompts" else W.Text
    box = kind(value=getattr(Choices(), name), description=label, placeholder="auto", continuous_update=name not in READING, rows=4,
               layout=W.Layout(width=width, flex_flow="column", height="auto"), style={"description_width": "auto"})
    return box, W.HTML(layout=W.Layout(display="none"))

def _card(number, title, *parts):
    card = W.VBox([W.HTML(f"<h3><span>{number}</span>{title}</h3>"), *parts])
    card.add_class("tav-card")
    return card

def _row_of(*boxes, align="flex-end"): return W.HBox(boxes, layout=W.Layout(flex_flow="row wrap", align_items=align, grid_gap="10px", overflow="visible"))

class Studio(W.VBox):
    "The method as an app: three cards from top to bottom. What it shows, and what happens, is `session`."
    def __init__(self, folder="studio"): # gets uploads, tuned weights and edits
        super().__init__()
        self.session = Session(folder)
        self.boxes, self.notes = ({k: v[i] for k, v in ((k, _field(k)) for k in FIELDS)} for i in (0, 1))
        self.add_class("tav-studio")
        self.strip, self.loss, self.preview, self.results, self.weights, self.code = (W.HTML() for _ in range(6))
        self.upload = W.FileUpload(accept="video/*,.gif", multiple=False, description="Upload", layout=W.Layout(width="110px"))
        fixed = lambda: W.Layout(flex="none", width="110px")
        self.bars = {job: (W.Button(description=job.title(), button_style="primary", layout=fixed()), W.Button(description="Stop", disabled=True, layout=fixed()),
                           W.FloatProgress(max=1., layout=fixed()), W.HTML(layout=W.Layout(flex="1 1 260px"))) for job in ("tune", "edit")}
        self.children = [W.HTML(_CSS), *self._cards()]
        for job, (go, stop, *_) in self.bars.items():
            go.on_click(lambda _, job=job: self.session.press(job))
            stop.on_click(lambda _: self.session.stop())
        for box in self.boxes.values(): box.observe(self._typed, "value")
        self.upload.observe(self._uploaded, "value")
        self.session.tell = lambda part: getattr(self, f"_show_{part}")()
        self._show_code(); self.session.see()

    def _cards(self):
        rows = lambda *names: [_row_of(*(self.boxes[n] for n in names)), *(self.notes[n] for n in names)]
        bar = lambda job: W.HBox(self.bars[job], layout=W.Layout(flex_flow="row wrap", align_items="center", grid_gap="10px", margin="10px 0 4px"))
        clip = [_row_of(self.boxes["clip"], self.upload), self.notes["clip"], *rows("caption"), *rows("base", "frames", "start", "stride", "size"), self.strip]
        tune = [*rows("steps", "lr", "seed", "every"), bar("tune"), _row_of(self.loss, self.preview, align="flex-start"), self.weights]
        edit = [*rows("prompts"), *rows("draws", "guidance"), bar("edit"), self.results, self.code]
        return [_card(i, *part) for i, part in enumerate((("Your clip", *clip), ("Learn it", *tune), ("Change the words", *edit)), 1)]

    def _typed(self, change):
        s, name = self.session, next(k for k, box in self.boxes.items() if box is change["owner"])
        s.choices = Choices(**{k: box.value for k, box in self.boxes.items()})
        s.problems = {k: v for k, v in s.problems.items() if k != name}; self._show_problems()
        if name in READING: s.see()

    def _uploaded(self, change):
        if got := uploaded(change["new"]):
            path = save_atomic(lambda part: part.write_bytes(got[1]), self.session.folder/got[0])
            self.boxes["clip"].value = str(path)

    def _show_problems(self):
        for k, box in self.boxes.items():
            said = self.session.problems.get(k, "")
            (box.add_class if said else box.remove_class)("tav-bad")
            self.notes[k].value, self.notes[k].layout.display = said and f'<div class="tav-note">{html.escape(said)}</div>', None if said else "none"

    def _show_status(self):
        s = self.session
        for job, (go, stop, bar, text) in self.bars.items():
            go.disabled, stop.disabled = s.busy, not (s.busy and s.job == job)
            if s.job == job: bar.value, text.value = s.done, html.escape(s.status)
        for box in (*self.boxes.values(), self.upload): box.disabled = s.busy

    def _show_clip(self): self.strip.value = "" if self.session.seen is None else strip_html(self.session.seen)
    def _show_loss(self): self.loss.value = loss_html(self.session.losses)

    def _show_preview(self):
        s = self.session
        self.preview.value = in_widget(clips_html({"source": s.clip, f"after {s.preview[0]} steps: {s.preview[1]}": s.preview[2]}, height=128)) if s.preview else ""

    def _show_tuned(self):
        s = self.session
        self.weights.value = link_html(s.folder/"tuned.safetensors", "Download what was learned") if s.tuned else ""
        self._show_code()

    def _show_code(self):
        s = self.session
        text = html.escape(code(s.tuned, s.edited)) if s.tuned else "It will stand here once something is learned."
        self.code.value = f"<details><summary>Show me the code</summary><pre>{text}</pre></details>"

    def _show_edits(self):
        s = self.session
        clips = {"source": s.clip} | {e["prompt"]: e["clip"] for e in s.edits}
        self.results.value = in_widget(clips_html(clips)) + table_html(s.edits) if s.edits else ""
        self._show_code()
