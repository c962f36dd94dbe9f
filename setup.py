"Hand the packaging facts of settings.ini to setuptools."

from configparser import ConfigParser

from setuptools import find_packages, setup

cfg = ConfigParser()
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
setup(
    version=cfg["version"],
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={k: cfg[f"{k}_requirements"].split() for k in ("dev", "metrics", "lora")},
    packages=find_packages(include=["tune_a_video_nbs*"]),
    package_data={"tune_a_video_nbs": ["assets/*", "assets/**/*"]},
    zip_safe=False,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": ["tune_a_video_nbs=tune_a_video_nbs._modidx:d"],
    },
)
