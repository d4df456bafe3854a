"""The settings of every verb."""

from typing import Annotated, Literal

from pydantic import Field

from raybert.config.core import Settings
from raybert.config.groups import (
    ChunkSettings,
    DataSettings,
    ModelSettings,
    OutputSettings,
    PrepareSettings,
    SearchSettings,
    TokenizerSettings,
    TokensOutput,
    VocabularySettings,
    WorkersSettings,
)
from raybert.config.paths import Place


class EmbedConfig(Settings):
    """raybert embed: a corpus in, every row exactly once in Parquet."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    chunk: ChunkSettings = Field(default_factory=ChunkSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="tokens in one forward pass, padding included; auto: 1024 on a CPU, 32768 on a GPU",
    )
    dry_run: bool = Field(False, description="print the settings, the plan and an estimate; write nothing")


class PrepareConfig(Settings):
    """raybert prepare: documents to shards of token ids, ready for pretraining."""

    model: TokenizerSettings = Field(default_factory=TokenizerSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    prepare: PrepareSettings = Field(default_factory=PrepareSettings)
    output: TokensOutput = Field(default_factory=TokensOutput)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    dry_run: bool = Field(False, description="print the settings and the plan; write nothing")


class VocabularyConfig(Settings):
    """raybert vocabulary: a tokenizer trained on a corpus."""

    class Output(Settings):
        """The tokenizer."""

        path: Place = Field("", description="new folder to write, on a disk; required")

    data: DataSettings = Field(default_factory=DataSettings)
    vocabulary: VocabularySettings = Field(default_factory=VocabularySettings)
    output: Output = Field(default_factory=Output)


class VerifyConfig(Settings):
    """raybert verify: check every promise of a folder of vectors, tokens or predictions."""

    class Data(Settings):
        """The folder."""

        path: Place = Field("", description="folder that raybert wrote; required")

    data: Data = Field(default_factory=Data)


class SearchConfig(Settings):
    """raybert search: exact nearest neighbours in a folder of vectors."""

    class Model(Settings):
        """The encoder of the query."""

        name: str | None = Field(None, description="where the model lies now; default: as embedded")
        prompt_name: str | None = Field(None, description="prompt of the query; default: as embedded")
        prompt: str | None = Field(None, description="text put before the query; default: as embedded")
        trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    model: Model = Field(default_factory=Model)
    data: VerifyConfig.Data = Field(default_factory=VerifyConfig.Data)
    search: SearchSettings = Field(default_factory=SearchSettings)
