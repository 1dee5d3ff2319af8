"""The plan of the house, read off the code: who may import whom, and how long a door may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    0: [
        *("parameters", "models._blocks", "utils.errors", "utils.console", "utils.processes", "utils.camera"),
        "utils.typefaces",
    ],
    1: [
        *("utils.settings", "utils.labels", "utils.synthetic", "utils.twins", "utils.splitting", "utils.pictures"),
        *("utils.plans", "utils.markup", "utils.isolation"),
        *("utils.tflite_file", "utils.fake_quant", "utils.complexity", "utils.espdl_file"),
        "utils.espdl_kernels",
    ],
    2: [
        *("models", "utils.sources", "utils.augmentation", "utils.teaching", "utils.quantization", "utils.micro"),
        *("utils.devices", "utils.confidence", "utils.smoothing", "utils.robustness"),
        *("utils.chips", "utils.espdl_run", "utils.review"),
    ],
    3: [
        *("utils.search_space", "utils.runs", "utils.readers", "utils.targets", "utils.espdl", "utils.espdl_project"),
        "utils.encodings",
    ],
    4: [
        *("utils.trials", "utils.loader", "utils.gate", "utils.export", "utils.model_archive", "utils.frontier"),
        *("utils.report", "utils.metering"),
    ],
    5: [
        *("utils.model_files", "utils.evaluation", "utils.manifest", "utils.golden", "utils.benchmark_pictures"),
        *("utils.espdl_gate", "utils.oracle", "utils.charts", "utils.worst_readings", "utils.catalog"),
    ],
    6: [
        *("utils.espdl_deployment", "utils.model_choice", "utils.comparison"),
        *("utils.report_sections", "utils.scoring", "utils.temperature"),
    ],
    7: ["utils.training", "utils.recognizers", "utils.report_page"],
    8: ["utils.deployment", "utils.fine_tuning", "utils.benchmark_report", "utils.prediction", "utils.measuring"],
    9: ["utils.session", "utils.inspection"],
    10: ["utils.retraining", "utils.tuning", "utils.benchmark", "utils.inspection_page"],
    11: ["train", "fine-tune", "retrain", "predict", "tuner", "benchmark", "report"],
}
LEVEL = {name: level for level, names in LAYERS.items() for name in names}
ARCHITECTURES = {f"models.{path.stem}" for path in (ROOT / "models").glob("*.py") if path.stem[0] != "_"}
LEVEL |= dict.fromkeys(ARCHITECTURES, 1)


def file_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_layer():
    files = [path for folder in ("utils", "models") for path in (ROOT / folder).glob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert names - {"utils"} == {name for name in LEVEL if "." in name or name == "models"}


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_modules_import_only_from_lower_layers(module):
    for imported in imports(file_of(module)) & set(LEVEL):
        package = imported == "models" and module.startswith("models.")
        assert package or LEVEL[imported] < LEVEL[module], f"{module} imports {imported}"


@pytest.mark.parametrize("module", sorted({*ARCHITECTURES, "models._blocks", "utils.augmentation", "utils.teaching"}))
def test_what_trains_on_every_backend_imports_no_tensorflow(module):
    roots = {name.split(".")[0] for name in imports(file_of(module))}
    assert roots <= {"collections", "keras", "math", "models", "numpy", "utils"}


def test_only_settings_reads_parameters():
    readers = [path.name for path in (ROOT / "utils").glob("*.py") if "parameters" in imports(path)]
    assert readers == []
    assert 'import_module("parameters")' in (ROOT / "utils" / "settings.py").read_text()


@pytest.mark.parametrize("door", LAYERS[11])
def test_doors_stay_thin(door):
    assert len(file_of(door).read_text().splitlines()) <= 80


@pytest.mark.parametrize("path", [*ROOT.glob("*.py"), *(ROOT / "utils").glob("*.py"), *(ROOT / "models").glob("*.py")])
def test_nothing_that_runs_foreign_code(path):
    calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert not calls & {"eval", "exec", "compile", "__import__"}
    assert not imports(path) & {"pickle", "dill", "joblib", "shelve", "marshal"}
    text = path.read_text()
    assert "allow_pickle=True" not in text
    assert "safe_mode=False" not in text
    assert text.count("load_model(") == text.count("safe_mode=True")
