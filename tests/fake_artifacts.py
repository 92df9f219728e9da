"""The artifacts of a fake W&B server: created, uploaded, committed, used and found as wandb does it."""

import json
from dataclasses import dataclass, field
from typing import Any

PROJECT = {"id": "p1", "internalId": "1", "name": "p", "entity": {"name": "team"}}


@dataclass
class KeptArtifact:
    """What the server keeps of a version of an artifact."""

    id: str
    name: str
    type: str
    digest: str
    run: str  # the run that created it
    metadata: dict[str, Any]
    aliases: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "PENDING"
    used_by: list[str] = field(default_factory=list)

    def described(self) -> dict[str, Any]:
        """As the fragment of GraphQL that wandb asks for."""
        collection = {"__typename": "ArtifactSequence", "name": self.name, "project": PROJECT}
        aliases = [
            {"__typename": "ArtifactAlias", "id": alias, "alias": alias, "artifactCollection": collection}
            for alias in self.aliases
        ]
        about = {"__typename": "Artifact", "id": self.id, "artifactSequence": collection, "versionIndex": 0}
        about |= {"artifactType": {"name": self.type}, "description": None, "metadata": json.dumps(self.metadata)}
        about |= {"ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "historyStep": None}
        about |= {"state": self.state, "size": 1, "digest": self.digest, "commitHash": "c", "fileCount": 1}
        return about | {"createdAt": "2026-01-01T00:00:00", "updatedAt": None, "aliases": aliases}

    def membership(self) -> dict[str, Any]:
        """The same, as the member of its collection."""
        described = self.described()
        member = {"__typename": "ArtifactCollectionMembership", "id": f"m-{self.id}", "versionIndex": 0}
        member |= {"createdAt": described["createdAt"], "artifactCollection": described["artifactSequence"]}
        aliases = [{key: alias[key] for key in ("__typename", "id", "alias")} for alias in described["aliases"]]
        return member | {"aliases": aliases, "artifact": described}


class ArtifactStore:
    """Artifacts by id. `is_full`: uploads of their files are refused."""

    def __init__(self) -> None:
        self.all: dict[str, KeptArtifact] = {}
        self.is_full = False

    def find(self, name: str) -> KeptArtifact | None:
        """The newest version with `name:alias`."""
        wanted, _, alias = name.rpartition(":")
        found = [one for one in self.all.values() if one.name == wanted and alias in one.aliases]
        return found[-1] if found else None

    def put(self, path: str, body: bytes) -> None:
        """A file that is uploaded to `<artifact id>/<name>`."""
        identity, _, name = path.partition("/")
        self.all[identity].files[name] = body

    def answer(self, name: str, variables: dict[str, Any], url: str) -> dict[str, Any] | None:
        """The answer to a query; None if it is not about artifacts."""
        if name == "ArtifactType":
            found = self.find(variables["name"])
            return {"project": {"artifact": found and {"artifactType": {"name": found.type}}}}
        if name == "CreateArtifact":
            return {"createArtifact": {"artifact": self._create(variables["input"])}}
        if name == "CreateArtifactManifest":
            upload = {"id": "f1", "uploadUrl": f"{url}/artifact/{variables['artifactID']}/.manifest"}
            manifest = {"id": variables["artifactID"], "file": upload | {"uploadHeaders": []}}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        if name == "UpdateArtifactManifest":
            upload = {"id": "f1", "uploadUrl": f"{url}/artifact/{variables['artifactManifestID']}/.manifest"}
            manifest = {"id": variables["artifactManifestID"], "file": upload | {"uploadHeaders": []}}
            return {"updateArtifactManifest": {"artifactManifest": manifest}}
        if name == "CreateArtifactFiles":
            files = variables["input"]["artifactFiles"]
            nodes = [self._upload(file["artifactID"], file["name"], url) for file in files]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CommitArtifact":
            kept = self.all[variables["artifactID"]]
            kept.state = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": kept.id, "digest": kept.digest}}}
        if name == "ArtifactByID":
            return {"artifact": self.all[variables["id"]].described()}
        if name == "ArtifactMembershipByName":
            found = self.find(variables["name"])
            return {"project": {"artifactCollectionMembership": found and found.membership()}}
        if name == "UseArtifact":
            given = variables.get("input", variables)
            kept = self.all[given["artifactID"]]
            kept.used_by.append(given["runName"])
            return {"useArtifact": {"artifact": kept.described()}}
        if name == "RunInputArtifacts":
            used = [one for one in self.all.values() if variables["run"] in one.used_by]
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            edges = [{"node": one.described()} for one in used]
            return {"project": {"run": {"artifacts": {"totalCount": len(used), "pageInfo": page, "edges": edges}}}}
        return None

    def _create(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["artifactTypeName"] == "run_table":  # its content is there already: nothing is to be uploaded
            return {"id": "a0", "state": "COMMITTED", "artifactSequence": {"id": "s1", "latestArtifact": None}}
        name, aliases = given["artifactCollectionName"], [one["alias"] for one in given.get("aliases") or []]
        same = [one for one in self.all.values() if (one.name, one.digest) == (name, given["digest"])]
        for one in self.all.values():
            one.aliases = [alias for alias in one.aliases if one.name != name or alias not in aliases]
        if same:
            kept = same[0]
            kept.aliases += aliases
        else:
            identity = f"a{len(self.all) + 1}"
            metadata = json.loads(given.get("metadata") or "{}")
            kept = KeptArtifact(
                identity, name, given["artifactTypeName"], given["digest"], given["runName"], metadata, aliases
            )
            self.all[identity] = kept
        return {"id": kept.id, "state": kept.state, "artifactSequence": {"id": "s1", "latestArtifact": None}}

    def _upload(self, identity: str, name: str, url: str) -> dict[str, Any]:
        node = {"storagePath": f"{identity}/{name}", "uploadUrl": f"{url}/artifact/{identity}/{name}"}
        return node | {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": identity}}
