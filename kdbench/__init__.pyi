from kdbench.errors import KDBenchError as KDBenchError
from kdbench.features import Activated as Activated
from kdbench.features import Feature as Feature
from kdbench.features import Grid as Grid
from kdbench.features import Kind as Kind
from kdbench.features import Last as Last
from kdbench.features import Logits as Logits
from kdbench.features import Nodes as Nodes
from kdbench.features import Points as Points
from kdbench.features import Tokens as Tokens
from kdbench.features import Values as Values
from kdbench.features import Vector as Vector
from kdbench.needs import PEER as PEER
from kdbench.needs import STUDENT as STUDENT
from kdbench.needs import TEACHER as TEACHER
from kdbench.needs import Artifact as Artifact
from kdbench.needs import Asked as Asked
from kdbench.needs import Bindings as Bindings
from kdbench.needs import Need as Need
from kdbench.needs import Part as Part
from kdbench.needs import Role as Role
from kdbench.needs import Stage as Stage
from kdbench.needs import State as State
from kdbench.needs import Update as Update
from kdbench.needs import Views as Views
from kdbench.plugin import Method as Method
from kdbench.plugin import Plugin as Plugin
from kdbench.signals import Context as Context
from kdbench.signals import Signals as Signals
from kdbench.task import Batch as Batch
from kdbench.task import Counts as Counts
from kdbench.task import DatasetInfo as DatasetInfo
from kdbench.task import ExportPlan as ExportPlan
from kdbench.task import Task as Task

__version__: str
__all__: list[str]
